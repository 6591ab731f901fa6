// Q4_0: 4 bits. w = d * (code - 8). Block of 32 weights,
// 18 bytes: float16 d, then byte j with weight j in its low and weight j + 16 in its high nibble.
// Source: ggml/src/ggml-common.h (block_q4_0).
#pragma once

#include "io/ggml_type.h"
#include "quant/format/ggml_groups.h"
#include "quant/format/packing.h"
#include "quant/format/uniform.h"

namespace nibble {

struct Q4_0 : StepFormat<Q4_0> {
  static constexpr GgmlType kType = GgmlType::kQ4_0;
  static constexpr int kFtype = 2;
  static constexpr int kBlockSize = 32;
  static constexpr int kGroupSize = 32;
  static constexpr int kQMin = -8;
  static constexpr int kQMax = 7;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    uint8_t qs[kBlockSize / 2];
  };
  static_assert(sizeof(Block) == 18);

  static NIBBLE_HD int code(const Block& block, int i) { return nibble_of(block.qs, i) - 8; }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* codes) {
    unpack_4_bits(block.qs, first, 8, codes);
  }
  static NIBBLE_HD void pack(const int8_t* codes, Block& block) {
    pack_nibbles(codes, 8, block.qs);
  }

  /// importance: weighed by weigh(), or nullptr.
  static NIBBLE_HD void encode_ggml(const float* weights, const float* importance, Block& block) {
    const auto choice = importance ? ggml_weighted_choice<kBlockSize>(weights, importance, 8)
                                   : ggml_extreme_choice<kBlockSize>(weights, 8);
    block.d = float_to_float16(choice.d);
    int8_t codes[kBlockSize];
    for (int i = 0; i < kBlockSize; ++i) codes[i] = static_cast<int8_t>(choice.codes[i] - 8);
    pack(codes, block);
  }
};

}  // namespace nibble
