// Q5_0: 5 bits. w = d * (code - 16). Block of 32 weights,
// 22 bytes: float16 d, 32 fifth bits (bit i of a little-endian word: weight i), nibbles as in Q4_0.
// Source: ggml/src/ggml-common.h (block_q5_0).
#pragma once

#include "io/ggml_type.h"
#include "quant/format/ggml_groups.h"
#include "quant/format/packing.h"
#include "quant/format/uniform.h"

namespace nibble {

struct Q5_0 : StepFormat<Q5_0> {
  static constexpr GgmlType kType = GgmlType::kQ5_0;
  static constexpr int kFtype = 8;
  static constexpr int kBlockSize = 32;
  static constexpr int kGroupSize = 32;
  static constexpr int kQMin = -16;
  static constexpr int kQMax = 15;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[kBlockSize / 2];
  };
  static_assert(sizeof(Block) == 22);

  static NIBBLE_HD int code(const Block& block, int i) {
    return nibble_of(block.qs, i) + 16 * bit_of(block.qh, i) - 16;
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* codes) {
    unpack_5_bits(block.qs, block.qh, first, 16, codes);
  }
  static NIBBLE_HD void pack(const int8_t* codes, Block& block) {
    pack_nibbles(codes, 16, block.qs);
    pack_fifth_bits(codes, 16, block.qh);
  }

  /// importance: weighed by weigh(), or nullptr.
  static NIBBLE_HD void encode_ggml(const float* weights, const float* importance, Block& block) {
    const auto choice = importance ? ggml_weighted_choice<kBlockSize>(weights, importance, 16)
                                   : ggml_extreme_choice<kBlockSize>(weights, 16);
    block.d = float_to_float16(choice.d);
    int8_t codes[kBlockSize];
    for (int i = 0; i < kBlockSize; ++i) codes[i] = static_cast<int8_t>(choice.codes[i] - 16);
    pack(codes, block);
  }
};

}  // namespace nibble
