// Q3_K: 3 bits. w = (d * t) * (code - 4), d float16 of the block, t a 6-bit integer of each group
// of 16 weights, -32 to 31. Block of 256 weights, 110 bytes: high bits (bit i / 32 of byte i mod
// 32), pairs of low bits (k_pairs), t's, d. t_j + 32 has its low nibble in byte j mod 8 (the byte's
// low one for j < 8) and its high 2 bits in bits 2 (j / 4), 2 (j / 4) + 1 of byte 8 + j mod 4.
// Source: ggml/src/ggml-common.h (block_q3_K), ggml/src/ggml-quants.c (make_q3_quants,
// quantize_row_q3_K_ref, quantize_row_q3_K_impl).
#pragma once

#include "io/ggml_type.h"
#include "quant/format/ggml_groups.h"
#include "quant/format/packing.h"
#include "quant/format/sub_scales.h"

namespace nibble {

/// ggml's choice for groups without importance: errors count x^2 times. From the scale that takes
/// the extreme to code 0, codes move one by one while the least-squares fit improves; none does
/// where the extreme is positive, as then the sum of x * q is negative.
template <int kSize, int kLanes>
NIBBLE_HD void ggml_moved_choices(const float* x, int half_range,
                                  GroupChoices<kSize, kLanes>* choices) {
  constexpr int kRounds = 5;
  const int lo = -half_range, hi = half_range - 1;
  float extremes[kLanes], inverse[kLanes], xq[kLanes] = {}, qq[kLanes] = {};
  float* codes = choices->codes;
  signed_extremes<kSize, kLanes>(x, extremes);
  NIBBLE_EACH_LANE (l, kLanes) inverse[l] = static_cast<float>(lo) / extremes[l];
  for (int first = 0; first < kSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) {
      const float value = x[first + l], weight = value * value;
      const auto q = static_cast<float>(ggml_code(inverse[l] * value, lo, hi));
      codes[first + l] = q;
      xq[l] += weight * value * q;
      qq[l] += weight * q * q;
    }
  }
  for (int round = 0; round < kRounds; ++round) {
    uint32_t moved[kLanes] = {};
    for (int first = 0; first < kSize * kLanes; first += kLanes) {
      NIBBLE_EACH_LANE (l, kLanes) {
        const float value = x[first + l], weight = value * value, q = codes[first + l];
        const float rest_xq = xq[l] - weight * value * q, rest_qq = qq[l] - weight * q * q;
        const auto to = static_cast<float>(ggml_code(value * rest_qq / rest_xq, lo, hi));
        const float new_xq = rest_xq + weight * value * to, new_qq = rest_qq + weight * to * to;
        // As bits, without a branch, so that the loop vectorizes.
        const uint32_t better = bits_where(rest_xq > 0.0f) & bits_where(to != q) &
                                bits_where(new_qq > 0.0f) &
                                bits_where(new_xq * new_xq * qq[l] > xq[l] * xq[l] * new_qq);
        codes[first + l] = choose_bits(better, to, q);
        xq[l] = choose_bits(better, new_xq, xq[l]);
        qq[l] = choose_bits(better, new_qq, qq[l]);
        moved[l] |= better;
      }
    }
    uint32_t any = 0;
    NIBBLE_EACH_LANE (l, kLanes) any |= moved[l];
    if (!any) break;
  }
  for (int first = 0; first < kSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) {
      const float shifted = codes[first + l] + static_cast<float>(half_range);
      codes[first + l] = std::fabs(extremes[l]) < kGgmlGroupEpsilon ? 0.0f : shifted;
    }
  }
  NIBBLE_EACH_LANE (l, kLanes) {
    const bool zero = std::fabs(extremes[l]) < kGgmlGroupEpsilon || !(qq[l] > 0.0f);
    const float fit = xq[l] / qq[l];
    choices->d[l] = zero ? 0.0f : fit;
  }
}

struct Q3_K : SubScaleFormat<Q3_K> {
  static constexpr GgmlType kType = GgmlType::kQ3_K;
  static constexpr int kFtype = 11;
  static constexpr int kBlockSize = 256;
  static constexpr int kGroupSize = 16;
  static constexpr int kNumScales = 17;
  static constexpr int kQMin = -4;
  static constexpr int kQMax = 3;
  static constexpr int kTMin = -32;
  static constexpr int kTMax = 31;

  struct NIBBLE_PACKED Block {
    uint8_t hmask[kBlockSize / 8];
    uint8_t qs[kBlockSize / 4];
    uint8_t scales[12];
    uint16_t d;
  };
  static_assert(sizeof(Block) == 110);

  static NIBBLE_HD int code(const Block& block, int i) {
    const int low = *k_pairs(block.qs, i) >> k_pair_shift(i) & 3;
    return (low | (block.hmask[i % 32] >> i / 32 & 1) << 2) - 4;
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* codes) {
    const uint8_t *bytes = k_pairs(block.qs, first), *high = block.hmask + first % 32;
    const int shift = k_pair_shift(first), bit = first / 32;
    for (int k = 0; k < kChunk; ++k)
      codes[k] = ((bytes[k] >> shift & 3) | (high[k] >> bit & 1) << 2) - 4;
  }
  static NIBBLE_HD void pack(const int8_t* codes, Block& block) {
    pack_k_pairs(codes, block.qs);
    pack_k_high_bits(codes, 4, 2, block.hmask);
  }

  static NIBBLE_HD int sub_scale(const Block& block, int group) {
    const int low = block.scales[group % 8] >> group / 8 * 4 & 15;
    return (low | (block.scales[8 + group % 4] >> group / 4 * 2 & 3) << 4) - 32;
  }
  static NIBBLE_HD void set_sub_scale(Block& block, int group, int t) {
    uint8_t &low = block.scales[group % 8], &high = block.scales[8 + group % 4];
    const int shift = group / 8 * 4, high_shift = group / 4 * 2, stored = t + 32;
    low = static_cast<uint8_t>((low & ~(15 << shift)) | (stored & 15) << shift);
    high = static_cast<uint8_t>((high & ~(3 << high_shift)) | (stored >> 4 & 3) << high_shift);
  }

  /// importance: as the imatrix has it, or nullptr.
  static NIBBLE_HD void encode_ggml(const float* weights, const float* importance, Block& block) {
    constexpr int kLanes = kBlockSize / kGroupSize;
    float x[kBlockSize];
    GroupChoices<kGroupSize, kLanes> groups;
    to_lanes<kGroupSize, kLanes>(weights, x);
    if (importance)
      share_weighted(weights, x, importance, &groups, block);
    else
      share_by_largest(x, &groups, block);
    int8_t codes[kBlockSize];
    ggml_block_codes<Q3_K>(weights, groups.codes, block, codes);
    pack(codes, block);
  }

 private:
  using Groups = GroupChoices<kGroupSize, kBlockSize / kGroupSize>;

  /// d and the t's, by the largest of the groups' steps; x in lanes.
  static NIBBLE_HD void share_by_largest(const float* x, Groups* groups, Block& block) {
    constexpr int kLanes = kBlockSize / kGroupSize;
    ggml_moved_choices<kGroupSize, kLanes>(x, -kQMin, groups);
    const float largest = signed_extreme(groups->d, kLanes);
    const float inverse = largest != 0.0f ? static_cast<float>(kTMin) / largest : 0.0f;
    block.d = largest != 0.0f ? float_to_float16(1.0f / inverse) : 0;
    for (int j = 0; j < kLanes; ++j) {
      const int t = static_cast<int8_t>(ggml_nearest_int(inverse * groups->d[j]));
      set_sub_scale(block, j, largest == 0.0f || t < kTMin ? kTMin : t > kTMax ? kTMax : t);
    }
  }
  /// The same as one more weighted choice, among the steps.
  static NIBBLE_HD void share_weighted(const float* weights, const float* x,
                                       const float* importance, Groups* groups, Block& block) {
    constexpr int kLanes = kBlockSize / kGroupSize;
    float weighed[kBlockSize], sums[kLanes];
    weigh_lanes<kGroupSize, kLanes>(x, weights, importance, 2.0f, weighed);
    sum_lanes<kGroupSize, kLanes>(weighed, sums);
    ggml_weighted_choices<kGroupSize, kLanes>(x, weighed, -kQMin, groups);
    const auto shared = ggml_weighted_choice<kLanes>(groups->d, sums, -kTMin);
    block.d = float_to_float16(shared.d);
    for (int j = 0; j < kLanes; ++j) set_sub_scale(block, j, shared.codes[j] + kTMin);
  }
};

}  // namespace nibble
