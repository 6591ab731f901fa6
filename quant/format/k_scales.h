// What K formats with mins share: llama-quantize's choice of d, dmin, t's and u's (Q2_K, Q4_K,
// Q5_K), and Q4_K's and Q5_K's eight groups of 32 weights with a 6-bit scale t and a 6-bit min u
// for each in 12 bytes. Source: ggml/src/ggml-quants.c (get_scale_min_k4, make_qp_quants,
// quantize_row_q2_K_ref, quantize_row_q2_K_impl, the same of q4_K).
#pragma once

#include "quant/format/ggml_groups.h"
#include "quant/format/packing.h"
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
  /// All t's, or all u's, byte j of a word for group j.
  static NIBBLE_HD uint64_t scales(const uint8_t* bytes) {
    const uint32_t first = load_word(bytes), last = load_word(bytes + 8);
    const uint32_t second = (last & 0x0f0f0f0fu) | (first >> 2 & 0x30303030u);
    return (first & 0x3f3f3f3fu) | static_cast<uint64_t>(second) << 32;
  }
  static NIBBLE_HD uint64_t mins(const uint8_t* bytes) {
    const uint32_t first = load_word(bytes + 4), last = load_word(bytes + 8);
    const uint32_t second = (last >> 4 & 0x0f0f0f0fu) | (first >> 2 & 0x30303030u);
    return (first & 0x3f3f3f3fu) | static_cast<uint64_t>(second) << 32;
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
  /// As ggml's encoders write them: of integers above 63 the high bits run into each other.
  static NIBBLE_HD void store_ggml_integers(const uint8_t* t, const uint8_t* u, uint8_t* bytes) {
    for (int j = 0; j < 4; ++j) {
      bytes[j] = static_cast<uint8_t>(t[j] | t[j + 4] >> 4 << 6);
      bytes[j + 4] = static_cast<uint8_t>(u[j] | u[j + 4] >> 4 << 6);
      bytes[j + 8] = static_cast<uint8_t>((t[j + 4] & 15) | (u[j + 4] & 15) << 4);
    }
  }
};

/// ggml's integers 0 to `largest` for positive numbers x, weighted, and their common step. Where
/// few weights count, a sum that cancels to next to nothing wraps an integer below 0: above
/// `largest`.
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
template <class F>
struct KGroups {
  GroupChoices<F::kGroupSize, kNumGroups<F>> choices;
  float mins[kNumGroups<F>], weight_sums[kNumGroups<F>];
};

/// What ggml weighs errors by without importance, in lanes: |x|, for Q4_K and Q5_K more of it the
/// larger the group's weights are.
template <class F>
NIBBLE_HD void ggml_k_magnitudes(const float* x, float* weights) {
  constexpr int kLanes = kNumGroups<F>;
  float means[kLanes] = {};
  if (!F::kAbsoluteErrors) {
    for (int first = 0; first < F::kBlockSize; first += kLanes) {
      NIBBLE_EACH_LANE (l, kLanes) means[l] += x[first + l] * x[first + l];
    }
    NIBBLE_EACH_LANE (l, kLanes) means[l] = std::sqrt(means[l] / F::kGroupSize);
  }
  for (int first = 0; first < F::kBlockSize; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) weights[first + l] = means[l] + std::fabs(x[first + l]);
  }
}

/// trials: of the search without importance.
template <class F>
NIBBLE_HD void ggml_k_groups(const float* block, const float* importance, const RangeTrials& trials,
                             KGroups<F>* found) {
  constexpr int kSize = F::kGroupSize, kLanes = kNumGroups<F>;
  float x[F::kBlockSize], weights[F::kBlockSize];
  to_lanes<kSize, kLanes>(block, x);
  if (importance)
    weigh_lanes<kSize, kLanes>(x, block, importance, F::kSigmaFactor, weights);
  else
    ggml_k_magnitudes<F>(x, weights);
  sum_lanes<kSize, kLanes>(weights, found->weight_sums);
  if (importance)
    ggml_weighted_ranges<kSize, kLanes, false>(x, weights, F::kQMax, importance_trials(),
                                               &found->choices);
  else
    ggml_weighted_ranges<kSize, kLanes, F::kAbsoluteErrors>(x, weights, F::kQMax, trials,
                                                            &found->choices);
  NIBBLE_EACH_LANE (l, kLanes) found->mins[l] = -found->choices.m[l];
}

/// float16 bits of the step that `x` share, and their integers: by the largest without importance.
template <class F>
NIBBLE_HD uint16_t ggml_k_step(const float* x, const float* weights, uint8_t* integers) {
  constexpr int kGroups = kNumGroups<F>, kLargest = F::kTMax;
  if (weights)
    return float_to_float16(ggml_positive_choice<kGroups>(x, weights, kLargest, integers));
  float max = 0.0f;
  for (int j = 0; j < kGroups; ++j) max = x[j] > max ? x[j] : max;
  const float inverse = max > 0.0f ? static_cast<float>(kLargest) / max : 0.0f;
  for (int j = 0; j < kGroups; ++j) {
    const auto integer = static_cast<uint8_t>(ggml_nearest_int(inverse * x[j]));
    integers[j] = integer < kLargest ? integer : kLargest;
  }
  return float_to_float16(max / static_cast<float>(kLargest));
}

/// llama-quantize's choice for a whole block; importance: as the imatrix has it, or nullptr. F says
/// kSigmaFactor (weigh_lanes()), kAbsoluteErrors for what there is without importance, and how
/// ggml stores the integers, in range or not (store_ggml_integers()).
template <class F>
NIBBLE_HD void encode_ggml_k(const float* x, const float* importance, const RangeTrials& trials,
                             typename F::Block& block) {
  constexpr int kGroups = kNumGroups<F>;
  KGroups<F> groups;
  ggml_k_groups<F>(x, importance, trials, &groups);
  const float* weights = importance ? groups.weight_sums : nullptr;
  uint8_t t[kGroups], u[kGroups];
  block.d = ggml_k_step<F>(groups.choices.d, weights, t);
  block.dmin = ggml_k_step<F>(groups.mins, weights, u);
  F::store_ggml_integers(t, u, block);
  int8_t codes[F::kBlockSize];
  ggml_block_codes<F>(x, groups.choices.codes, block, codes);
  F::pack(codes, block);
}

/// A K format of eight groups of 32 weights with mins. F also has Block with d, dmin, scales and
/// nibbles qs, and fifth_bit(block, group, k): 16 or 0, what weight k's nibble lacks.
template <class F>
struct KFormat : SubMinFormat<F> {
  static constexpr int kBlockSize = 256;
  static constexpr int kGroupSize = 32;
  static constexpr int kNumScales = 18;
  static constexpr int kQMin = 0;
  static constexpr int kTMin = 0;
  static constexpr int kTMax = 63;
  static constexpr bool kAbsoluteErrors = false;
  static constexpr float kSigmaFactor = 2.0f;

  /// Two groups at a time, the low and the high nibbles of the same bytes; unrolled, as shifts that
  /// g++ can see become vectors of any width, and others for AVX2 none.
  template <class Block>
  static NIBBLE_HD void decode(const Block& block, float* out) {
    float scales[kNumScales];
    scales_of(block, scales);
    NIBBLE_UNROLL
    for (int group = 0; group < kNumGroups<F>; group += 2) {
      const uint8_t* bytes = block.qs + kGroupSize / 2 * group;
      uint8_t low[kGroupSize], high[kGroupSize];
      NIBBLE_EACH_LANE (k, kGroupSize) {
        low[k] = static_cast<uint8_t>((bytes[k] & 15) | F::fifth_bit(block, group, k));
        high[k] = static_cast<uint8_t>(bytes[k] >> 4 | F::fifth_bit(block, group + 1, k));
      }
      float* to = out + kGroupSize * group;
      store_values(low, F::grid(scales, group), to);
      store_values(high, F::grid(scales, group + 1), to + kGroupSize);
    }
  }
  template <class Block>
  static NIBBLE_HD void scales_of(const Block& block, float* scales) {
    scales[0] = float16_to_float(block.d);
    scales[1] = float16_to_float(block.dmin);
    const uint64_t t = KScales::scales(block.scales), u = KScales::mins(block.scales);
    NIBBLE_EACH_LANE (j, kNumGroups<F>)
      scales[2 + j] = static_cast<float>(static_cast<int32_t>(t >> 8 * j & 255));
    NIBBLE_EACH_LANE (j, kNumGroups<F>)
      scales[2 + kNumGroups<F> + j] = static_cast<float>(static_cast<int32_t>(u >> 8 * j & 255));
  }
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
  template <class Block>
  static NIBBLE_HD void store_ggml_integers(const uint8_t* t, const uint8_t* u, Block& block) {
    KScales::store_ggml_integers(t, u, block.scales);
  }

 private:
  static NIBBLE_HD void store_values(const uint8_t* codes, const Grid& grid, float* out) {
#pragma GCC ivdep
    for (int k = 0; k < kGroupSize; ++k) out[k] = value_of<F>(static_cast<float>(codes[k]), grid);
  }
};

}  // namespace nibble
