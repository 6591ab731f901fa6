// Q1_0: 1 bit. w = d or -d. Block of 128 weights, 18 bytes: float16 d, then bit i % 8 of byte i / 8
// set where weight i is d. Source: ggml/src/ggml-common.h (block_q1_0), ggml/src/ggml-quants.c.
#pragma once

#include "io/ggml_type.h"
#include "quant/format/codebook.h"
#include "quant/format/lanes.h"
#include "quant/format/packing.h"
#include "quant/format/range.h"

namespace nibble {

struct Q1_0 : StepFormat<Q1_0> {
  static constexpr GgmlType kType = GgmlType::kQ1_0;
  static constexpr int kFtype = 40;
  static constexpr int kBlockSize = 128;
  static constexpr int kGroupSize = 128;
  static constexpr int kQMin = -1;
  static constexpr int kQMax = 1;
  using Levels = Codebook<Ties::kUp, -1, 1>;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    uint8_t qs[kBlockSize / 8];
  };
  static_assert(sizeof(Block) == 18);

  static NIBBLE_HD int code(const Block& block, int i) { return 2 * bit_of(block.qs, i) - 1; }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* levels) {
    const uint32_t bits = block.qs[first / 8] | static_cast<uint32_t>(block.qs[first / 8 + 1]) << 8;
    NIBBLE_EACH_LANE (k, kChunk) levels[k] = static_cast<int32_t>(bits >> k & 1u) * 2 - 1;
  }
  static NIBBLE_HD void pack(const int8_t* levels, Block& block) {
    for (int byte = 0; byte < kBlockSize / 8; ++byte) {
      int bits = 0;
      for (int k = 0; k < 8; ++k) bits |= Levels::index_of(levels[8 * byte + k]) << k;
      block.qs[byte] = static_cast<uint8_t>(bits);
    }
  }

  /// ggml has no use for importance here.
  static NIBBLE_HD void encode_ggml(const float* weights, const float*, Block& block) {
    block.d = float_to_float16(mean_magnitude(weights, kBlockSize));
    int8_t levels[kBlockSize];
    for (int i = 0; i < kBlockSize; ++i) levels[i] = weights[i] >= 0.0f ? 1 : -1;
    pack(levels, block);
  }
};

}  // namespace nibble
