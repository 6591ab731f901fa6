// llama-quantize's weighted search for scales and codes, to the byte, over several groups of
// weights at once, in lanes: each group's sums keep ggml's order. Facts from ggml/src/ggml-quants.c
// (make_qx_quants, make_qkx2_quants, make_qkx3_quants) as of llama.cpp in llama-cpp-python 0.3.36.
#pragma once

#include <limits>

#include "quant/format/ggml_choice.h"
#include "quant/format/lanes.h"
#include "quant/format/uniform.h"

namespace nibble {

/// Scales before rounding to float16 (m only with an offset) and codes counted from 0.
template <int kSize, int kLanes>
struct GroupChoices {
  float d[kLanes];
  float m[kLanes];
  float codes[kSize * kLanes];
};

/// signed_extreme() of each group.
template <int kSize, int kLanes>
NIBBLE_HD void signed_extremes(const float* x, float* extremes) {
  float magnitudes[kLanes];
  NIBBLE_EACH_LANE (l, kLanes) magnitudes[l] = extremes[l] = 0.0f;
  for (int first = 0; first < kSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) {
      const float value = x[first + l], magnitude = std::fabs(value);
      const bool larger = magnitudes[l] < magnitude;
      extremes[l] = larger ? value : extremes[l];
      magnitudes[l] = larger ? magnitude : magnitudes[l];
    }
  }
}

/// Weighted sums of x * q and q * q for the codes that the inverse scales give.
template <int kSize, int kLanes>
NIBBLE_HD void ggml_correlate(const float* x, const float* weights, int half_range,
                              const float* inverse, float* sums_xq, float* sums_qq) {
  float xq[kLanes] = {}, qq[kLanes] = {};
  for (int first = 0; first < kSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) {
      const float value = x[first + l], weight = weights[first + l];
      const auto q = static_cast<float>(ggml_code(inverse[l] * value, -half_range, half_range - 1));
      xq[l] += weight * value * q;
      qq[l] += weight * q * q;
    }
  }
  NIBBLE_EACH_LANE (l, kLanes) {
    sums_xq[l] = xq[l];
    sums_qq[l] = qq[l];
  }
}

/// Q4_0, Q5_0 with importance, the groups of Q3_K and Q6_K: 19 scales around the extreme, each
/// refitted by least squares.
template <int kSize, int kLanes>
NIBBLE_HD void ggml_weighted_choices(const float* x, const float* weights, int half_range,
                                     GroupChoices<kSize, kLanes>* choices) {
  float extremes[kLanes], best_inverse[kLanes], best[kLanes], xq[kLanes], qq[kLanes];
  float* d = choices->d;
  signed_extremes<kSize, kLanes>(x, extremes);
  NIBBLE_EACH_LANE (l, kLanes) best_inverse[l] = static_cast<float>(-half_range) / extremes[l];
  ggml_correlate<kSize, kLanes>(x, weights, half_range, best_inverse, xq, qq);
  NIBBLE_EACH_LANE (l, kLanes) {
    const float fit = xq[l] / qq[l];
    d[l] = qq[l] != 0.0f ? fit : 0.0f;
    best[l] = d[l] * xq[l];
  }
  for (int step = -9; step <= 9; ++step) {
    if (step == 0) continue;
    const float multiple = -(static_cast<float>(half_range) + 0.1f * static_cast<float>(step));
    float inverse[kLanes];
    NIBBLE_EACH_LANE (l, kLanes) inverse[l] = multiple / extremes[l];
    ggml_correlate<kSize, kLanes>(x, weights, half_range, inverse, xq, qq);
    NIBBLE_EACH_LANE (l, kLanes) {
      const float fit = xq[l] / qq[l], gain = fit * xq[l];
      const bool better = qq[l] > 0.0f && xq[l] * xq[l] > best[l] * qq[l];
      best_inverse[l] = better ? inverse[l] : best_inverse[l];
      d[l] = better ? fit : d[l];
      best[l] = better ? gain : best[l];
    }
  }
  for (int first = 0; first < kSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) {
      const int32_t q = ggml_code(best_inverse[l] * x[first + l], -half_range, half_range - 1);
      const bool zero = std::fabs(extremes[l]) < kGgmlGroupEpsilon;
      choices->codes[first + l] = static_cast<float>(zero ? 0 : q + half_range);
    }
  }
  NIBBLE_EACH_LANE (l, kLanes) d[l] = std::fabs(extremes[l]) < kGgmlGroupEpsilon ? 0.0f : d[l];
}

/// Weighted sums over a group that the fit of d and m needs.
template <int kLanes>
struct FitSums {
  float w[kLanes], x[kLanes], q[kLanes], qq[kLanes], xq[kLanes];
};

/// The ranges of the groups, reaching up to 0 at least, and the sums that do not depend on codes.
template <int kSize, int kLanes>
NIBBLE_HD void ggml_ranges(const float* x, const float* weights, float* mins, float* maxs,
                           FitSums<kLanes>* sums) {
  NIBBLE_EACH_LANE (l, kLanes) {
    mins[l] = maxs[l] = x[l];
    sums->w[l] = weights[l];
    sums->x[l] = weights[l] * x[l];
  }
  for (int first = kLanes; first < kSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) {
      const float value = x[first + l];
      mins[l] = value < mins[l] ? value : mins[l];
      maxs[l] = value > maxs[l] ? value : maxs[l];
      sums->w[l] += weights[first + l];
      sums->x[l] += weights[first + l] * value;
    }
  }
  NIBBLE_EACH_LANE (l, kLanes) mins[l] = mins[l] > 0.0f ? 0.0f : mins[l];
}

template <int kSize, int kLanes>
NIBBLE_HD void ggml_range_codes(const float* x, int largest, const float* inverse,
                                const float* from, float* codes) {
  for (int first = 0; first < kSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) {
      codes[first + l] =
          static_cast<float>(ggml_code(inverse[l] * (x[first + l] - from[l]), 0, largest));
    }
  }
}

template <int kSize, int kLanes>
NIBBLE_HD void ggml_sum_codes(const float* x, const float* weights, const float* codes,
                              FitSums<kLanes>* sums) {
  float sum_q[kLanes] = {}, qq[kLanes] = {}, xq[kLanes] = {};
  for (int first = 0; first < kSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) {
      const float q = codes[first + l], weighted = weights[first + l] * q;
      sum_q[l] += weighted;
      qq[l] += weighted * q;
      xq[l] += weighted * x[first + l];
    }
  }
  NIBBLE_EACH_LANE (l, kLanes) {
    sums->q[l] = sum_q[l];
    sums->qq[l] = qq[l];
    sums->xq[l] = xq[l];
  }
}

/// The least-squares d and m for given codes, m at most 0; d is a NaN where they are not
/// determined, and so is every error that it gives.
template <int kLanes>
NIBBLE_HD void ggml_fit(const FitSums<kLanes>& sums, float* d, float* m) {
  NIBBLE_EACH_LANE (l, kLanes) {
    const float determinant = sums.w[l] * sums.qq[l] - sums.q[l] * sums.q[l];
    const float slope = (sums.w[l] * sums.xq[l] - sums.x[l] * sums.q[l]) / determinant;
    const float start = (sums.qq[l] * sums.x[l] - sums.q[l] * sums.xq[l]) / determinant;
    const float through_zero = sums.xq[l] / sums.qq[l];
    const float fitted = start > 0.0f ? through_zero : slope;
    d[l] = determinant > 0.0f ? fitted : std::numeric_limits<float>::quiet_NaN();
    m[l] = start > 0.0f ? 0.0f : start;
  }
}

/// Weighted sums of squared errors, or of absolute ones.
template <int kSize, int kLanes, bool kAbsolute>
NIBBLE_HD void ggml_errors(const float* x, const float* weights, const float* codes, const float* d,
                           const float* m, float* errors) {
  float sums[kLanes] = {};
  for (int first = 0; first < kSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) {
      const float difference = d[l] * codes[first + l] + m[l] - x[first + l];
      sums[l] += weights[first + l] * (kAbsolute ? std::fabs(difference) : difference * difference);
    }
  }
  NIBBLE_EACH_LANE (l, kLanes) errors[l] = sums[l];
}

/// Ranges that ggml tries: (first + i * delta + largest code) steps, i = 0 ... last.
struct RangeTrials {
  float first, delta;
  int last;
};
/// Those with importance. A function, since device code has no objects of the host's.
NIBBLE_HD RangeTrials importance_trials() { return {-0.9f, 0.05f, 36}; }

/// Q4_1, Q5_1 with importance, the groups of Q2_K, Q4_K and Q5_K: some scales, d and m refitted for
/// each, the least error kept.
template <int kSize, int kLanes, bool kAbsolute>
NIBBLE_HD void ggml_weighted_ranges(const float* x, const float* weights, int largest,
                                    const RangeTrials& trials,
                                    GroupChoices<kSize, kLanes>* choices) {
  FitSums<kLanes> sums;
  float lowest[kLanes], maxs[kLanes], inverse[kLanes], from[kLanes], best[kLanes];
  float *d = choices->d, *m = choices->m, *codes = choices->codes;
  ggml_ranges<kSize, kLanes>(x, weights, lowest, maxs, &sums);
  NIBBLE_EACH_LANE (l, kLanes) {
    m[l] = from[l] = lowest[l];
    inverse[l] = static_cast<float>(largest) / (maxs[l] - lowest[l]);
    d[l] = 1.0f / inverse[l];
  }
  ggml_range_codes<kSize, kLanes>(x, largest, inverse, from, codes);
  ggml_errors<kSize, kLanes, kAbsolute>(x, weights, codes, d, m, best);
  for (int step = 0; step <= trials.last; ++step) {
    const float steps =
        trials.first + trials.delta * static_cast<float>(step) + static_cast<float>(largest);
    float trial[kLanes], trial_d[kLanes], trial_m[kLanes], errors[kLanes];
    // The best minimum so far, not the range's, is where ggml counts from.
    NIBBLE_EACH_LANE (l, kLanes) trial[l] = steps / (maxs[l] - m[l]);
    ggml_range_codes<kSize, kLanes>(x, largest, trial, m, codes);
    ggml_sum_codes<kSize, kLanes>(x, weights, codes, &sums);
    ggml_fit<kLanes>(sums, trial_d, trial_m);
    ggml_errors<kSize, kLanes, kAbsolute>(x, weights, codes, trial_d, trial_m, errors);
    NIBBLE_EACH_LANE (l, kLanes) {
      const bool better = errors[l] < best[l];
      best[l] = better ? errors[l] : best[l];
      inverse[l] = better ? trial[l] : inverse[l];
      from[l] = better ? m[l] : from[l];
      d[l] = better ? trial_d[l] : d[l];
      m[l] = better ? trial_m[l] : m[l];
    }
  }
  ggml_range_codes<kSize, kLanes>(x, largest, inverse, from, codes);
  for (int first = 0; first < kSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) codes[first + l] = maxs[l] > lowest[l] ? codes[first + l] : 0.0f;
  }
  NIBBLE_EACH_LANE (l, kLanes) {
    const bool flat = !(maxs[l] > lowest[l]);
    d[l] = flat ? 0.0f : d[l];
    m[l] = flat ? lowest[l] : m[l];
  }
}

template <int kBlockSize>
NIBBLE_HD BlockChoice<kBlockSize> block_choice(const GroupChoices<kBlockSize, 1>& found) {
  BlockChoice<kBlockSize> choice;
  choice.d = found.d[0];
  choice.m = found.m[0];
  for (int i = 0; i < kBlockSize; ++i)
    choice.codes[i] = static_cast<uint8_t>(static_cast<int32_t>(found.codes[i]));
  return choice;
}

/// For a block that is one group.
template <int kBlockSize>
NIBBLE_HD BlockChoice<kBlockSize> ggml_weighted_choice(const float* x, const float* weights,
                                                       int half_range) {
  GroupChoices<kBlockSize, 1> found;
  ggml_weighted_choices<kBlockSize, 1>(x, weights, half_range, &found);
  found.m[0] = 0.0f;
  return block_choice(found);
}
template <int kBlockSize>
NIBBLE_HD BlockChoice<kBlockSize> ggml_weighted_range_choice(const float* x, const float* weights,
                                                             int largest) {
  GroupChoices<kBlockSize, 1> found;
  ggml_weighted_ranges<kBlockSize, 1, false>(x, weights, largest, importance_trials(), &found);
  return block_choice(found);
}

/// weigh() in lanes, of a block whose mean square ggml takes `factor` times.
template <int kSize, int kLanes>
NIBBLE_HD void weigh_lanes(const float* x, const float* block, const float* importance,
                           float factor, float* weights) {
  constexpr int kBlockSize = kSize * kLanes;
  float square_sum = 0.0f;
  for (int i = 0; i < kBlockSize; ++i) square_sum += block[i] * block[i];
  float lanes[kBlockSize];
  to_lanes<kSize, kLanes>(importance, lanes);
  weigh<kBlockSize>(x, lanes, factor * square_sum / kBlockSize, weights);
}

/// The codes of a block with sub-scales, by its stored scales; where a group's step is 0, those of
/// its own step (`own`, in lanes, counted from 0) stay.
template <class F>
NIBBLE_HD void ggml_block_codes(const float* x, const float* own, const typename F::Block& block,
                                int8_t* codes) {
  constexpr int kSize = F::kGroupSize;
  float scales[F::kNumScales];
  F::scales_of(block, scales);
  for (int j = 0; j < kNumGroups<F>; ++j) {
    const Grid grid = F::grid(scales, j);
    for (int i = 0; i < kSize; ++i) {
      const int own_code = static_cast<int>(own[i * kNumGroups<F> + j]) + F::kQMin;
      const float shifted = F::kHasOffset ? x[j * kSize + i] - grid.offset : x[j * kSize + i];
      const int code = ggml_code(shifted / grid.step, F::kQMin, F::kQMax);
      codes[j * kSize + i] = static_cast<int8_t>(grid.step == 0.0f ? own_code : code);
    }
  }
}

}  // namespace nibble
