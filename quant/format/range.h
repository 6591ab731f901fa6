// EncodeMethod::kRtn: scales from the range of a block's weights.
#pragma once

#include <cmath>

#include "quant/format/lanes.h"
#include "quant/format/uniform.h"

namespace nibble {

/// From here on, rounding to float16 gives infinity.
constexpr float kOverflow = 65520.0f;

/// The largest float16 that is not above x.
NIBBLE_HD float float16_at_most(float x) {
  const float snapped = snap_offset(x);
  if (snapped <= x) return snapped;
  const uint16_t bits = float_to_float16(snapped);
  if (snapped == 0.0f) return -kMinStep;
  return float16_to_float(static_cast<uint16_t>(snapped > 0.0f ? bits - 1 : bits + 1));
}

NIBBLE_HD float mean_magnitude(const float* weights, int count) {
  float sum = 0.0f;
  for (int i = 0; i < count; ++i) sum += std::fabs(weights[i]);
  return sum / static_cast<float>(count);
}

struct WeightRange {
  float min, max;
};

/// Of kCount weights, a multiple of kChunk. In lanes that are folded at the end, so that no weight
/// waits for the one before.
template <int kCount>
NIBBLE_HD WeightRange range_of(const float* weights) {
  float mins[kChunk], maxs[kChunk];
  lane_ranges<kCount / kChunk, kChunk>(weights, mins, maxs);
  for (int width = kChunk / 2; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) {
      mins[k] = mins[k + width] < mins[k] ? mins[k + width] : mins[k];
      maxs[k] = maxs[k + width] > maxs[k] ? maxs[k + width] : maxs[k];
    }
  }
  return {mins[0], maxs[0]};
}

/// The step, of either sign, that takes no weight of such a range beyond the levels. With d > 0,
/// the largest weight needs d >= max / q_max and the smallest d >= min / q_min; d < 0 swaps them.
template <class F>
NIBBLE_HD float step_of_range(float min, float max) {
  constexpr float kLo = F::kQMin, kHi = F::kQMax;
  const float up = max > 0.0f ? max : 0.0f, down = min < 0.0f ? -min : 0.0f;
  const float positive = up / kHi > down / -kLo ? up / kHi : down / -kLo;
  const float negative = down / kHi > up / -kLo ? down / kHi : up / -kLo;
  return positive <= negative ? positive : -negative;
}

/// The scales that put every weight within half a step of its value, without clamping. A format
/// of two levels has no range to cover: the mean magnitude there, which is the least-squares step.
template <class F>
NIBBLE_HD void range_scales(const float* weights, float* scales) {
  if constexpr (F::Levels::kCount == 2) {
    scales[0] = mean_magnitude(weights, F::kBlockSize);
    return;
  }
  const auto [min, max] = range_of<F::kBlockSize>(weights);
  if constexpr (F::kHasOffset) {
    scales[1] = std::fabs(min) < kOverflow ? float16_at_most(min) : min;
    const float range = max - scales[1];
    scales[0] = range > 0.0f ? range / static_cast<float>(F::kQMax) : 0.0f;
  } else {
    scales[0] = step_of_range<F>(min, max);
  }
}

}  // namespace nibble
