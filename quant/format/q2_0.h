// Q2_0: 2 bits. w = d * (code - 1): the levels -d, 0, d, 2 d; d may be negative. Block of 64
// weights, 18 bytes: float16 d, then byte j with weight 4 j + k in bits 2 k and 2 k + 1. ggml
// itself never uses the level 2 d. Source: ggml/src/ggml-common.h (block_q2_0).
#pragma once

#include "io/ggml_type.h"
#include "quant/format/ggml_choice.h"
#include "quant/format/packing.h"
#include "quant/format/uniform.h"

namespace nibble {

struct Q2_0 : StepFormat<Q2_0> {
  static constexpr GgmlType kType = GgmlType::kQ2_0;
  static constexpr int kFtype = 41;
  static constexpr int kBlockSize = 64;
  static constexpr int kGroupSize = 64;
  static constexpr int kQMin = -1;
  static constexpr int kQMax = 2;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    uint8_t qs[kBlockSize / 4];
  };
  static_assert(sizeof(Block) == 18);

  static NIBBLE_HD int code(const Block& block, int i) {
    return ((block.qs[i / 4] >> (i % 4 * 2)) & 3) - 1;
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* codes) {
    const uint32_t word = load_word(block.qs + first / 4);
    NIBBLE_EACH_LANE (k, kChunk) codes[k] = static_cast<int32_t>(word >> 2 * k & 3u) - 1;
  }
  static NIBBLE_HD void pack(const int8_t* codes, Block& block) {
    for (int j = 0; j < kBlockSize / 8; ++j) {
      const uint64_t eight = shifted_codes(codes + 8 * j, 1, 3);
      // Bits 8 k come to bits 2 k, for two times four codes.
      const uint64_t pairs = eight | eight >> 6;
      const uint64_t fours = pairs | pairs >> 12;
      block.qs[2 * j] = static_cast<uint8_t>(fours);
      block.qs[2 * j + 1] = static_cast<uint8_t>(fours >> 32);
    }
  }

  /// ggml has no use for importance here.
  static NIBBLE_HD void encode_ggml(const float* weights, const float*, Block& block) {
    const float d = std::fabs(signed_extreme(weights, kBlockSize));
    const float inverse = d > 0.0f ? 1.0f / d : 0.0f;
    int8_t codes[kBlockSize];
    for (int i = 0; i < kBlockSize; ++i) {
      const int32_t q = round_half_away(weights[i] * inverse);
      codes[i] = static_cast<int8_t>(q < kQMin ? kQMin : q > kQMax ? kQMax : q);
    }
    block.d = float_to_float16(d);
    pack(codes, block);
  }
};

}  // namespace nibble
