// Q5_K: 5 bits. w = (d * t) * code - dmin * u; d, dmin float16 of the block, t and u 6-bit integers
// of each group of 32 weights. Block of 256 weights, 176 bytes: d, dmin, t's and u's (KScales),
// fifth bits (bit i / 32 of byte i mod 32), nibbles as in Q4_K. Source: ggml/src/ggml-common.h
// (block_q5_K), ggml/src/ggml-quants.c.
#pragma once

#include "io/ggml_type.h"
#include "quant/format/k_scales.h"

namespace nibble {

struct Q5_K : KFormat<Q5_K> {
  static constexpr GgmlType kType = GgmlType::kQ5_K;
  static constexpr int kFtype = 16;
  static constexpr int kQMax = 31;

  struct NIBBLE_PACKED Block {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[kBlockSize / 8];
    uint8_t qs[kBlockSize / 2];
  };
  static_assert(sizeof(Block) == 176);

  static NIBBLE_HD int fifth_bit(const Block& block, int group, int k) {
    return (block.qh[k] >> group & 1) << 4;
  }
  static NIBBLE_HD int code(const Block& block, int i) {
    const int low = *k_nibbles(block.qs, i) >> k_nibble_shift(i) & 15;
    return low | fifth_bit(block, i / 32, i % 32);
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* codes) {
    const uint8_t *bytes = k_nibbles(block.qs, first), *high = block.qh + first % 32;
    const int shift = k_nibble_shift(first), bit = first / 32;
    for (int k = 0; k < kChunk; ++k)
      codes[k] = (bytes[k] >> shift & 15) | (high[k] >> bit & 1) << 4;
  }
  static NIBBLE_HD void pack(const int8_t* codes, Block& block) {
    pack_k_nibbles(codes, block.qs);
    pack_k_high_bits(codes, 0, 4, block.qh);
  }
  static NIBBLE_HD void store_ggml_integers(const uint8_t* t, const uint8_t* u, Block& block) {
    uint8_t scales[8], mins[8];
    for (int j = 0; j < 8; ++j) {
      scales[j] = t[j] < kTMax ? t[j] : kTMax;
      mins[j] = u[j] < kTMax ? u[j] : kTMax;
    }
    KScales::store_ggml_integers(scales, mins, block.scales);
  }
  static NIBBLE_HD void encode_ggml(const float* weights, const float* importance, Block& block) {
    encode_ggml_k<Q5_K>(weights, importance, {-0.5f, 0.1f, 15}, block);
  }
};

}  // namespace nibble
