// Q5_1: 5 bits with a minimum. w = d * code + m. Block of 32 weights,
// 24 bytes: float16 d, float16 m, fifth bits and nibbles as in Q5_0.
// Source: ggml/src/ggml-common.h (block_q5_1).
#pragma once

#include "io/ggml_type.h"
#include "quant/format/ggml_groups.h"
#include "quant/format/packing.h"
#include "quant/format/uniform.h"

namespace nibble {

struct Q5_1 : StepOffsetFormat<Q5_1> {
  static constexpr GgmlType kType = GgmlType::kQ5_1;
  static constexpr int kFtype = 9;
  static constexpr int kBlockSize = 32;
  static constexpr int kGroupSize = 32;
  static constexpr int kQMin = 0;
  static constexpr int kQMax = 31;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    uint16_t m;
    uint8_t qh[4];
    uint8_t qs[kBlockSize / 2];
  };
  static_assert(sizeof(Block) == 24);

  static NIBBLE_HD int code(const Block& block, int i) {
    return nibble_of(block.qs, i) + 16 * bit_of(block.qh, i);
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* codes) {
    unpack_5_bits(block.qs, block.qh, first, 0, codes);
  }
  static NIBBLE_HD void pack(const int8_t* codes, Block& block) {
    pack_nibbles(codes, 0, block.qs);
    pack_fifth_bits(codes, 0, block.qh);
  }

  /// importance: weighed by weigh(), or nullptr.
  static NIBBLE_HD void encode_ggml(const float* weights, const float* importance, Block& block) {
    const auto choice = importance
                            ? ggml_weighted_range_choice<kBlockSize>(weights, importance, kQMax)
                            : ggml_range_choice<kBlockSize>(weights, kQMax);
    block.d = float_to_float16(choice.d);
    block.m = float_to_float16(choice.m);
    int8_t codes[kBlockSize];
    for (int i = 0; i < kBlockSize; ++i) codes[i] = static_cast<int8_t>(choice.codes[i]);
    pack(codes, block);
  }
};

}  // namespace nibble
