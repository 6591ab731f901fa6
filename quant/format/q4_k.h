// Q4_K: 4 bits. w = (d * t) * code - dmin * u; d, dmin float16 of the block, t and u 6-bit integers
// of each group of 32 weights. Block of 256 weights, 144 bytes: d, dmin, t's and u's (KScales),
// nibbles. Source: ggml/src/ggml-common.h (block_q4_K), ggml/src/ggml-quants.c.
#pragma once

#include "io/ggml_type.h"
#include "quant/format/k_scales.h"

namespace nibble {

struct Q4_K : KFormat<Q4_K> {
  static constexpr GgmlType kType = GgmlType::kQ4_K;
  static constexpr int kFtype = 14;
  static constexpr int kQMax = 15;

  struct NIBBLE_PACKED Block {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qs[kBlockSize / 2];
  };
  static_assert(sizeof(Block) == 144);

  static NIBBLE_HD int fifth_bit(const Block&, int, int) { return 0; }
  static NIBBLE_HD int code(const Block& block, int i) {
    return *k_nibbles(block.qs, i) >> k_nibble_shift(i) & 15;
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* codes) {
    const uint8_t* bytes = k_nibbles(block.qs, first);
    const int shift = k_nibble_shift(first);
    for (int k = 0; k < kChunk; ++k) codes[k] = bytes[k] >> shift & 15;
  }
  static NIBBLE_HD void pack(const int8_t* codes, Block& block) { pack_k_nibbles(codes, block.qs); }
  static NIBBLE_HD void encode_ggml(const float* weights, const float* importance, Block& block) {
    encode_ggml_k<Q4_K>(weights, importance, {-1.0f, 0.1f, 20}, block);
  }
};

}  // namespace nibble
