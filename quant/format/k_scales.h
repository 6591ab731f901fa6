// What Q4_K and Q5_K share: eight groups of 32 weights, a 6-bit scale t and a 6-bit min u for each
// in 12 bytes, and llama-quantize's choice of them. Source: ggml/src/ggml-quants.c
// (get_scale_min_k4, make_qkx2_quants, make_qkx3_quants, make_qp_quants, quantize_row_q4_K_ref,
// quantize_row_q4_K_impl).
#pragma once

#include "quant/format/ggml_choice.h"
#include "quant/format/sub_scales.h"

namespace nibble {

/// Bytes 0 to 3: t_0 to t_3 in the low 6 bits, 4 to 7: u_0 to u_3; their high 2 bits are those of
/// t_4 to t_7, u_4 to u_7, whose low 4 bits are the nibbles of bytes 8 to 11.
struct KScales {
  static NIBBLE_HD int scale(const uint8_t* bytes, int j) {
    return j < 4 ? bytes[j] & 63 : (bytes[j + 4] & 15) | bytes[j - 4] >> 6 << 4;
  }
  static NIBBLE_HD int min(const uint8_t* bytes, int j) {
    return j < 4 ? bytes[j + 4] & 63 : bytes[j + 4] >> 4 | bytes[j] >> 6 << 4;
  }
  static NIBBLE_HD void set_scale(uint8_t* bytes, int j, int t) {
    if (j < 4) {
      bytes[j] = static_cast<uint8_t>((bytes[j] & 192) | (t & 63));
    } else {
      bytes[j + 4] = static_cast<uint8_t>((bytes[j + 4] & 240) | (t & 15));
      bytes[j - 4] = static_cast<uint8_t>((bytes[j - 4] & 63) | (t >> 4 & 3) << 6);
    }
  }
  static NIBBLE_HD void set_min(uint8_t* bytes, int j, int u) {
    if (j < 4) {
      bytes[j + 4] = static_cast<uint8_t>((bytes[j + 4] & 192) | (u & 63));
    } else {
      bytes[j + 4] = static_cast<uint8_t>((bytes[j + 4] & 15) | (u & 15) << 4);
      bytes[j] = static_cast<uint8_t>((bytes[j] & 63) | (u >> 4 & 3) << 6);
    }
  }
};

/// ggml's integers 0 to `largest` for positive numbers x, weighted, and their common step.
template <int kCount>
NIBBLE_HD float ggml_positive_choice(const float* x, const float* weights, int largest,
                                       uint8_t* codes) {
  float max = 0.0f;
  for (int i = 0; i < kCount; ++i) max = x[i] > max ? x[i] : max;
  for (int i = 0; i < kCount; ++i) codes[i] = 0;
  if (max < kGgmlGroupEpsilon) return 0.0f;
  float best_inverse = static_cast<float>(largest) / max;
  float best = 0.0f;
  for (int i = 0; i < kCount; ++i) {
    const auto code = static_cast<uint8_t>(ggml_nearest_int(best_inverse * x[i]));
    const float difference = x[i] - 1.0f / best_inverse * static_cast<float>(code);
    best += weights[i] * difference * difference;
  }
  for (int step = -4; step <= 4; ++step) {
    if (step == 0) continue;
    const float inverse = (0.1f * static_cast<float>(step) + static_cast<float>(largest)) / max;
    float error = 0.0f;
    for (int i = 0; i < kCount; ++i) {
      const int32_t code = ggml_nearest_int(inverse * x[i]);
      const float difference =
          x[i] - 1.0f / inverse * static_cast<float>(code < largest ? code : largest);
      error += weights[i] * difference * difference;
    }
    if (error < best) {
      best = error;
      best_inverse = inverse;
    }
  }
  float sum_xq = 0.0f, sum_qq = 0.0f;
  for (int i = 0; i < kCount; ++i) {
    const int32_t code = ggml_nearest_int(best_inverse * x[i]);
    const int32_t q = code < largest ? code : largest;
    codes[i] = static_cast<uint8_t>(q);
    sum_xq += weights[i] * x[i] * static_cast<float>(q);
    sum_qq += weights[i] * static_cast<float>(q) * static_cast<float>(q);
  }
  for (int round = 0; round < 5; ++round) {
    bool changed = false;
    for (int i = 0; i < kCount; ++i) {
      const float q = static_cast<float>(codes[i]);
      float xq = sum_xq - weights[i] * x[i] * q, qq = sum_qq - weights[i] * q * q;
      if (!(xq > 0.0f && qq > 0.0f)) continue;
      const int32_t code = ggml_nearest_int(x[i] * qq / xq);
      const int32_t moved = code < largest ? code : largest;
      if (moved == codes[i]) continue;
      xq += weights[i] * x[i] * static_cast<float>(moved);
      qq += weights[i] * static_cast<float>(moved) * static_cast<float>(moved);
      if (!(xq * xq * sum_qq > sum_xq * sum_xq * qq)) continue;
      codes[i] = static_cast<uint8_t>(moved);
      sum_xq = xq;
      sum_qq = qq;
      changed = true;
    }
    if (!changed) break;
  }
  return sum_qq > 0.0f ? sum_xq / sum_qq : 0.0f;
}

/// Steps and minus-offsets of the groups as ggml finds them, before they share d and dmin.
struct KGroups {
  static constexpr int kGroups = 8, kSize = 32;
  float steps[kGroups], mins[kGroups], weight_sums[kGroups];
  uint8_t codes[kGroups * kSize];
};

/// trials: of the search without importance. largest: code.
NIBBLE_HD void ggml_k_groups(const float* x, const float* importance, int largest,
                               const RangeTrials& trials, KGroups* found) {
  constexpr int kSize = KGroups::kSize;
  float square_sum = 0.0f;
  for (int i = 0; i < KGroups::kGroups * kSize; ++i) square_sum += x[i] * x[i];
  const float sigma2 = 2.0f * square_sum / (KGroups::kGroups * kSize);
  for (int j = 0; j < KGroups::kGroups; ++j) {
    const float* group = x + j * kSize;
    float weights[kSize];
    if (importance) {
      weigh<kSize>(group, importance + j * kSize, sigma2, weights);
    } else {
      const float mean = std::sqrt(mean_square(group, kSize));
      for (int i = 0; i < kSize; ++i) weights[i] = mean + std::fabs(group[i]);
    }
    found->weight_sums[j] = 0.0f;
    for (int i = 0; i < kSize; ++i) found->weight_sums[j] += weights[i];
    const auto choice = ggml_weighted_range_choice<kSize>(group, weights, largest,
                                                          importance ? importance_trials() : trials);
    found->steps[j] = choice.d;
    found->mins[j] = -choice.m;
    memcpy(found->codes + j * kSize, choice.codes, kSize);
  }
}

/// float16 bits of the step that `x` share, and their integers: by the largest without importance.
NIBBLE_HD uint16_t ggml_k_step(const float* x, const float* weights, uint8_t* integers) {
  constexpr int kLargest = 63;
  if (weights)
    return float_to_float16(ggml_positive_choice<KGroups::kGroups>(x, weights, kLargest, integers));
  float max = 0.0f;
  for (int j = 0; j < KGroups::kGroups; ++j) max = x[j] > max ? x[j] : max;
  const float inverse = max > 0.0f ? static_cast<float>(kLargest) / max : 0.0f;
  for (int j = 0; j < KGroups::kGroups; ++j) {
    const auto integer = static_cast<uint8_t>(ggml_nearest_int(inverse * x[j]));
    integers[j] = integer < kLargest ? integer : kLargest;
  }
  return float_to_float16(max / static_cast<float>(kLargest));
}

/// llama-quantize's choice for a whole block; importance: as the imatrix has it, or nullptr.
template <class F>
NIBBLE_HD void encode_ggml_k(const float* x, const float* importance, const RangeTrials& trials,
                               typename F::Block& block) {
  KGroups groups;
  ggml_k_groups(x, importance, F::kQMax, trials, &groups);
  const float* weights = importance ? groups.weight_sums : nullptr;
  uint8_t t[KGroups::kGroups], u[KGroups::kGroups];
  block.d = ggml_k_step(groups.steps, weights, t);
  block.dmin = ggml_k_step(groups.mins, weights, u);
  int8_t codes[F::kBlockSize];
  for (int j = 0; j < KGroups::kGroups; ++j) {
    KScales::set_scale(block.scales, j, t[j]);
    KScales::set_min(block.scales, j, u[j]);
  }
  for (int j = 0; j < KGroups::kGroups; ++j) {
    const float step =
        float16_to_float(block.d) * static_cast<float>(KScales::scale(block.scales, j));
    const float min =
        float16_to_float(block.dmin) * static_cast<float>(KScales::min(block.scales, j));
    for (int i = j * KGroups::kSize; i < (j + 1) * KGroups::kSize; ++i)
      codes[i] = static_cast<int8_t>(step == 0.0f  // the codes of the group's own step stay
                                         ? groups.codes[i]
                                         : ggml_code((x[i] + min) / step, 0, F::kQMax));
  }
  F::pack(codes, block);
}

/// A K format of eight groups of 32 weights with mins. F also has Block with d, dmin and scales.
template <class F>
struct KFormat : SubMinFormat<F> {
  static constexpr int kBlockSize = 256;
  static constexpr int kGroupSize = 32;
  static constexpr int kNumScales = 18;
  static constexpr int kQMin = 0;
  static constexpr int kTMin = 0;
  static constexpr int kTMax = 63;

  template <class Block>
  static NIBBLE_HD int sub_scale(const Block& block, int group) {
    return KScales::scale(block.scales, group);
  }
  template <class Block>
  static NIBBLE_HD int sub_min(const Block& block, int group) {
    return KScales::min(block.scales, group);
  }
  template <class Block>
  static NIBBLE_HD void set_sub_scale(Block& block, int group, int t) {
    KScales::set_scale(block.scales, group, t);
  }
  template <class Block>
  static NIBBLE_HD void set_sub_min(Block& block, int group, int u) {
    KScales::set_min(block.scales, group, u);
  }
};

/// Byte 32 (i / 64) + i mod 32 of `qs` holds weight i in its low nibble for i mod 64 < 32, else in
/// its high one.
NIBBLE_HD const uint8_t* k_nibbles(const uint8_t* qs, int first) {
  return qs + first / 64 * 32 + first % 32;
}
NIBBLE_HD int k_nibble_shift(int first) { return first % 64 / 32 * 4; }

/// Stores the low 4 bits of 256 codes.
NIBBLE_HD void pack_k_nibbles(const int8_t* codes, uint8_t* qs) {
  for (int j = 0; j < 128; ++j) {
    const int8_t* low = codes + j / 32 * 64 + j % 32;
    qs[j] = static_cast<uint8_t>((low[0] & 15) | (low[32] & 15) << 4);
  }
}

}  // namespace nibble
