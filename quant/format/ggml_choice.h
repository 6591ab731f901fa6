// The scales and codes that llama-quantize chooses for one grid, to the
// byte: every operation and every sum in its order. Facts from ggml/src/ggml-quants.c
// (quantize_row_*_ref, quantize_*_impl, make_qx_quants, make_qkx3_quants) as of llama.cpp in
// llama-cpp-python 0.3.36. Encoding goes by the unrounded scale there, so codes need not be the
// nearest for the stored one.
#pragma once

#include <cmath>

#include "quant/format/block.h"

namespace nibble {

/// Scales before rounding to float16 (m only with an offset) and codes counted from 0.
template <int kBlockSize>
struct BlockChoice {
  float d = 0.0f;
  float m = 0.0f;
  uint8_t codes[kBlockSize];
};

/// What x86's cvttss2si gives, also where C++ leaves the conversion undefined.
NIBBLE_HD int32_t truncate_to_int(float x) {
  return x > -2147483648.0f && x < 2147483648.0f ? static_cast<int32_t>(x) : INT32_MIN;
}

/// roundf for |x| < 2^23: ties away from zero. 0.49999997 so that the float below 0.5 rounds to 0.
NIBBLE_HD float round_half_away(float x) {
  return static_cast<float>(truncate_to_int(x + std::copysign(0.49999997f, x)));
}

/// The element of largest magnitude, the first one of several.
NIBBLE_HD float signed_extreme(const float* x, int count) {
  float magnitude = 0.0f, extreme = 0.0f;
  for (int i = 0; i < count; ++i) {
    if (magnitude < std::fabs(x[i])) {
      magnitude = std::fabs(x[i]);
      extreme = x[i];
    }
  }
  return extreme;
}

/// ggml weighs an imatrix row by sqrt(sigma2 + x^2), sigma2 the mean square of the row.
NIBBLE_HD float mean_square(const float* row, int64_t length) {
  float sum = 0.0f;
  for (int64_t i = 0; i < length; ++i) sum += row[i] * row[i];
  return sum / static_cast<float>(length);
}

template <int kBlockSize>
NIBBLE_HD void weigh(const float* x, const float* importance, float sigma2, float* weights) {
  for (int i = 0; i < kBlockSize; ++i) {
    weights[i] = importance[i] * std::sqrt(sigma2 + x[i] * x[i]);
  }
}

/// Q4_0, Q5_0: the extreme element becomes code 0 (q = -2^(bits-1)).
template <int kBlockSize>
NIBBLE_HD BlockChoice<kBlockSize> ggml_extreme_choice(const float* x, int half_range) {
  BlockChoice<kBlockSize> choice;
  choice.d = signed_extreme(x, kBlockSize) / static_cast<float>(-half_range);
  const float inverse = choice.d != 0.0f ? 1.0f / choice.d : 0.0f;
  const int32_t largest = 2 * half_range - 1;
  for (int i = 0; i < kBlockSize; ++i) {
    const float shifted = x[i] * inverse + (static_cast<float>(half_range) + 0.5f);
    const int32_t code = static_cast<int8_t>(truncate_to_int(shifted));
    choice.codes[i] = static_cast<uint8_t>(code < largest ? code : largest);
  }
  return choice;
}

/// Q4_1, Q5_1: the range of the block, its minimum at code 0.
template <int kBlockSize>
NIBBLE_HD BlockChoice<kBlockSize> ggml_range_choice(const float* x, int largest) {
  BlockChoice<kBlockSize> choice;
  float min = x[0], max = x[0];
  for (int i = 1; i < kBlockSize; ++i) {
    if (x[i] < min) min = x[i];
    if (x[i] > max) max = x[i];
  }
  choice.m = min;
  choice.d = (max - min) / static_cast<float>(largest);
  const float inverse = choice.d != 0.0f ? 1.0f / choice.d : 0.0f;
  for (int i = 0; i < kBlockSize; ++i) {
    const int32_t code = static_cast<int8_t>(truncate_to_int((x[i] - min) * inverse + 0.5f));
    choice.codes[i] = static_cast<uint8_t>(code < largest ? code : largest);
  }
  return choice;
}

/// ggml's nearest_int: round_to_int, with its wrap-around beyond 2^22.
NIBBLE_HD int32_t ggml_nearest_int(float x) {
  return static_cast<int32_t>(bits_of(x + kRoundingBias) & 0x007fffffu) - 0x00400000;
}

NIBBLE_HD int32_t ggml_code(float x, int32_t lo, int32_t hi) {
  const int32_t code = ggml_nearest_int(x);
  return code < lo ? lo : code > hi ? hi : code;
}

/// Weighted sums of x * q and q * q for the codes that the inverse scale gives.
template <int kBlockSize>
NIBBLE_HD void ggml_correlate(const float* x, const float* weights, int half_range, float inverse,
                                float* sum_xq, float* sum_qq) {
  float xq = 0.0f, qq = 0.0f;
  for (int i = 0; i < kBlockSize; ++i) {
    const float q = static_cast<float>(ggml_code(inverse * x[i], -half_range, half_range - 1));
    xq += weights[i] * x[i] * q;
    qq += weights[i] * q * q;
  }
  *sum_xq = xq;
  *sum_qq = qq;
}

/// ggml's GROUP_MAX_EPS: below it a group of weights is all zero.
constexpr float kGgmlGroupEpsilon = 1e-15f;

/// Q4_0, Q5_0 with importance, the groups of Q6_K: 19 scales around the extreme, each refitted by
/// least squares.
template <int kBlockSize>
NIBBLE_HD BlockChoice<kBlockSize> ggml_weighted_choice(const float* x, const float* weights,
                                                         int half_range) {
  BlockChoice<kBlockSize> choice;
  const float extreme = signed_extreme(x, kBlockSize);
  if (std::fabs(extreme) < kGgmlGroupEpsilon) {  // d = 0 and codes 0
    for (uint8_t& code : choice.codes) code = 0;
    return choice;
  }
  float best_inverse = static_cast<float>(-half_range) / extreme;
  float sum_xq, sum_qq;
  ggml_correlate<kBlockSize>(x, weights, half_range, best_inverse, &sum_xq, &sum_qq);
  choice.d = sum_qq != 0.0f ? sum_xq / sum_qq : 0.0f;
  float best = choice.d * sum_xq;
  for (int step = -9; step <= 9; ++step) {
    if (step == 0) continue;
    const float inverse =
        -(static_cast<float>(half_range) + 0.1f * static_cast<float>(step)) / extreme;
    ggml_correlate<kBlockSize>(x, weights, half_range, inverse, &sum_xq, &sum_qq);
    if (sum_qq > 0.0f && sum_xq * sum_xq > best * sum_qq) {
      best_inverse = inverse;
      choice.d = sum_xq / sum_qq;
      best = choice.d * sum_xq;
    }
  }
  for (int i = 0; i < kBlockSize; ++i) {
    const int32_t q = ggml_code(best_inverse * x[i], -half_range, half_range - 1);
    choice.codes[i] = static_cast<uint8_t>(q + half_range);
  }
  return choice;
}

/// Weighted sums over a block that the fit of d and m needs.
struct FitSums {
  float w, x, q, qq, xq;
};

/// The least-squares d and m for given codes, m at most 0; false where they are not determined.
NIBBLE_HD bool ggml_fit(const FitSums& sums, float* d, float* m) {
  const float determinant = sums.w * sums.qq - sums.q * sums.q;
  if (!(determinant > 0.0f)) return false;
  *d = (sums.w * sums.xq - sums.x * sums.q) / determinant;
  *m = (sums.qq * sums.x - sums.q * sums.xq) / determinant;
  if (*m > 0.0f) {
    *m = 0.0f;
    *d = sums.xq / sums.qq;
  }
  return true;
}

template <int kBlockSize>
NIBBLE_HD float ggml_error(const float* x, const float* weights, const uint8_t* codes, float d,
                             float m) {
  float error = 0.0f;
  for (int i = 0; i < kBlockSize; ++i) {
    const float difference = d * static_cast<float>(codes[i]) + m - x[i];
    error += weights[i] * (difference * difference);
  }
  return error;
}

/// Ranges that ggml tries: (first + i * delta + largest code) steps, i = 0 ... last.
struct RangeTrials {
  float first, delta;
  int last;
};
/// Those with importance. A function, since device code has no objects of the host's.
NIBBLE_HD RangeTrials importance_trials() { return {-0.9f, 0.05f, 36}; }

/// Q4_1, Q5_1 with importance, the groups of Q4_K and Q5_K: some scales, d and m refitted for each,
/// the least error kept.
template <int kBlockSize>
NIBBLE_HD BlockChoice<kBlockSize> ggml_weighted_range_choice(
    const float* x, const float* weights, int largest,
    const RangeTrials& trials = importance_trials()) {
  BlockChoice<kBlockSize> choice;
  float min = x[0], max = x[0];
  FitSums sums = {weights[0], weights[0] * x[0], 0.0f, 0.0f, 0.0f};
  for (int i = 1; i < kBlockSize; ++i) {
    if (x[i] < min) min = x[i];
    if (x[i] > max) max = x[i];
    sums.w += weights[i];
    sums.x += weights[i] * x[i];
  }
  if (min > 0.0f) min = 0.0f;
  choice.m = min;
  if (max <= min) {
    for (uint8_t& code : choice.codes) code = 0;
    return choice;
  }
  const float inverse = static_cast<float>(largest) / (max - min);
  choice.d = 1.0f / inverse;
  for (int i = 0; i < kBlockSize; ++i) {
    choice.codes[i] = static_cast<uint8_t>(ggml_code(inverse * (x[i] - min), 0, largest));
  }
  float best = ggml_error<kBlockSize>(x, weights, choice.codes, choice.d, choice.m);
  for (int step = 0; step <= trials.last; ++step) {
    // The best minimum so far, not the range's, is where ggml counts from.
    const float trial =
        (trials.first + trials.delta * static_cast<float>(step) + static_cast<float>(largest)) /
        (max - choice.m);
    uint8_t codes[kBlockSize];
    sums.q = sums.qq = sums.xq = 0.0f;
    for (int i = 0; i < kBlockSize; ++i) {
      codes[i] = static_cast<uint8_t>(ggml_code(trial * (x[i] - choice.m), 0, largest));
      const float q = static_cast<float>(codes[i]);
      sums.q += weights[i] * q;
      sums.qq += weights[i] * q * q;
      sums.xq += weights[i] * q * x[i];
    }
    float d, m;
    if (!ggml_fit(sums, &d, &m)) continue;
    const float error = ggml_error<kBlockSize>(x, weights, codes, d, m);
    if (error < best) {
      best = error;
      choice.d = d;
      choice.m = m;
      memcpy(choice.codes, codes, sizeof codes);
    }
  }
  return choice;
}

}  // namespace nibble
