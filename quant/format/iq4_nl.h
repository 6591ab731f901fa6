// IQ4_NL: 4 bits. w = d * level, sixteen levels from -127 to 113 (iq4.h). Block of 32 weights, 18
// bytes: float16 d, then byte j with weight j in its low and weight j + 16 in its high nibble.
// Source: ggml/src/ggml-common.h (block_iq4_nl), ggml/src/ggml-quants.c.
#pragma once

#include "io/ggml_type.h"
#include "quant/format/iq4.h"

namespace nibble {

struct IQ4_NL : StepFormat<IQ4_NL> {
  static constexpr GgmlType kType = GgmlType::kIQ4_NL;
  static constexpr int kFtype = 25;
  static constexpr int kBlockSize = kIq4Group;
  static constexpr int kGroupSize = kIq4Group;
  static constexpr int kQMin = -127;
  static constexpr int kQMax = 113;
  static constexpr bool kWeighsItself = true;
  using Levels = Iq4Levels;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    uint8_t qs[kBlockSize / 2];
  };
  static_assert(sizeof(Block) == 18);

  static NIBBLE_HD int code(const Block& block, int i) {
    return iq4_level(static_cast<uint32_t>(nibble_of(block.qs, i)));
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* levels) {
    unpack_iq4(block.qs, first, levels);
  }
  static NIBBLE_HD void pack(const int8_t* levels, Block& block) { pack_iq4(levels, block.qs); }

  /// importance: as the imatrix has it, or nullptr.
  static NIBBLE_HD void encode_ggml(const float* weights, const float* importance, Block& block) {
    float weighed[kBlockSize];
    const float sigma2 = 2.0f * mean_square(weights, kBlockSize);
    ggml_iq4_weights(weights, importance, sigma2, weighed);
    const float step = ggml_iq4_step(weights, weighed);
    block.d = float_to_float16(step);
    int8_t levels[kBlockSize];
    ggml_iq4_levels(weights, step, levels);
    pack(levels, block);
  }
};

}  // namespace nibble
