// Q2_K: 2 bits. w = (d * t) * code - dmin * u; d, dmin float16 of the block, t and u 4-bit integers
// of each group of 16 weights. Block of 256 weights, 84 bytes: bytes with t in the low and u in the
// high nibble, pairs of bits (k_pairs), d, dmin. Source: ggml/src/ggml-common.h (block_q2_K),
// ggml/src/ggml-quants.c.
#pragma once

#include "io/ggml_type.h"
#include "quant/format/k_scales.h"

namespace nibble {

struct Q2_K : SubMinFormat<Q2_K> {
  static constexpr GgmlType kType = GgmlType::kQ2_K;
  static constexpr int kFtype = 10;
  static constexpr int kBlockSize = 256;
  static constexpr int kGroupSize = 16;
  static constexpr int kNumScales = 34;
  static constexpr int kQMin = 0;
  static constexpr int kQMax = 3;
  static constexpr int kTMin = 0;
  static constexpr int kTMax = 15;
  static constexpr bool kAbsoluteErrors = true;
  static constexpr float kSigmaFactor = 1.0f;

  struct NIBBLE_PACKED Block {
    uint8_t scales[kBlockSize / kGroupSize];
    uint8_t qs[kBlockSize / 4];
    uint16_t d, dmin;
  };
  static_assert(sizeof(Block) == 84);

  static NIBBLE_HD int code(const Block& block, int i) {
    return *k_pairs(block.qs, i) >> k_pair_shift(i) & 3;
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* codes) {
    const uint8_t* bytes = k_pairs(block.qs, first);
    const int shift = k_pair_shift(first);
    for (int k = 0; k < kChunk; ++k) codes[k] = bytes[k] >> shift & 3;
  }
  static NIBBLE_HD void pack(const int8_t* codes, Block& block) { pack_k_pairs(codes, block.qs); }

  static NIBBLE_HD int sub_scale(const Block& block, int group) { return block.scales[group] & 15; }
  static NIBBLE_HD int sub_min(const Block& block, int group) { return block.scales[group] >> 4; }
  static NIBBLE_HD void set_sub_scale(Block& block, int group, int t) {
    block.scales[group] = static_cast<uint8_t>((block.scales[group] & 240) | (t & 15));
  }
  static NIBBLE_HD void set_sub_min(Block& block, int group, int u) {
    block.scales[group] = static_cast<uint8_t>((block.scales[group] & 15) | (u & 15) << 4);
  }

  static NIBBLE_HD void store_ggml_integers(const uint8_t* t, const uint8_t* u, Block& block) {
    for (int j = 0; j < 16; ++j) block.scales[j] = static_cast<uint8_t>(t[j] | u[j] << 4);
  }
  static NIBBLE_HD void encode_ggml(const float* weights, const float* importance, Block& block) {
    encode_ggml_k<Q2_K>(weights, importance, {-0.5f, 0.1f, 15}, block);
  }
};

}  // namespace nibble
