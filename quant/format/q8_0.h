// Q8_0: 8 bits. w = d * q. Block of 32 weights, 34 bytes: float16 d, then one int8 per weight.
// Encoders do not use q = -128, as ggml does not. Source: ggml/src/ggml-common.h (block_q8_0).
#pragma once

#include "io/ggml_type.h"
#include "quant/format/ggml_choice.h"
#include "quant/format/uniform.h"

namespace nibble {

struct Q8_0 : StepFormat<Q8_0> {
  static constexpr GgmlType kType = GgmlType::kQ8_0;
  static constexpr int kFtype = 7;
  static constexpr int kBlockSize = 32;
  static constexpr int kGroupSize = 32;
  static constexpr int kQMin = -127;
  static constexpr int kQMax = 127;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    int8_t qs[kBlockSize];
  };
  static_assert(sizeof(Block) == 34);

  static NIBBLE_HD int code(const Block& block, int i) { return block.qs[i]; }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* codes) {
    for (int k = 0; k < kChunk; ++k) codes[k] = block.qs[first + k];
  }
  static NIBBLE_HD void pack(const int8_t* codes, Block& block) {
    memcpy(block.qs, codes, sizeof block.qs);
  }

  /// ggml has no use for importance here.
  static NIBBLE_HD void encode_ggml(const float* weights, const float*, Block& block) {
    const float d = std::fabs(signed_extreme(weights, kBlockSize)) / 127.0f;
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    block.d = float_to_float16(d);
    int32_t codes[kBlockSize];
    NIBBLE_EACH_LANE (i, kBlockSize) codes[i] = round_half_away(weights[i] * inverse);
    NIBBLE_EACH_LANE (i, kBlockSize) block.qs[i] = static_cast<int8_t>(codes[i]);
  }
};

}  // namespace nibble
