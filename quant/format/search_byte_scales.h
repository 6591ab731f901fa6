// EncodeMethod::kSearch and kRtn for formats whose scales are bytes, one per group of weights
// (quant/format/fp4.h). There are so few of them that search tries each that could be best.
#pragma once

#include <cmath>
#include <limits>

#include "quant/format/uniform.h"

namespace nibble {

NIBBLE_HD float largest_magnitude(const float* weights, int count) {
  float largest = 0.0f;
  for (int i = 0; i < count; ++i) {
    const float magnitude = std::fabs(weights[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

/// The scales that put every weight within half a step of its value, without clamping.
template <class F>
NIBBLE_HD void range_byte_scales(const float* weights, float* scales) {
  for (int j = 0; j < kNumGroups<F>; ++j)
    scales[j] = F::range_scale(largest_magnitude(weights + j * F::kGroupSize, F::kGroupSize));
}

/// Weighted squared error of a group.
template <class F>
NIBBLE_HD float byte_scale_error(const float* weights, const float* importance, const Grid& grid) {
  float sums[kChunk] = {};
  for (int first = 0; first < F::kGroupSize; first += kChunk) {
    for (int k = 0; k < kChunk; ++k) {
      const float weight = weights[first + k];
      const float residual = weight - value_of<F>(level_of<F>(weight, grid), grid);
      sums[k] += importance[first + k] * residual * residual;
    }
  }
  return fold_sums(sums);
}

/// The scale of least error of those from half of the range's to the one that makes the largest
/// weight 1.
template <class F>
NIBBLE_HD float search_byte_scale(const float* weights, const float* importance) {
  const float largest = largest_magnitude(weights, F::kGroupSize);
  const float range = F::nearest_scale(F::range_scale(largest));
  const int first = F::byte_of_scale(F::nearest_scale(0.5f * range));
  const int last = F::byte_of_scale(F::nearest_scale(largest));
  float best = range, least = std::numeric_limits<float>::infinity();
  for (int byte = first; byte <= last; ++byte) {
    const float scale = F::scale_of_byte(byte);
    const float error = byte_scale_error<F>(weights, importance, F::grid(&scale, 0));
    if (!(error < least)) continue;
    least = error;
    best = scale;
  }
  return best;
}

template <class F>
NIBBLE_HD void search_byte_scales(const float* weights, const float* importance, float* scales) {
  for (int j = 0; j < kNumGroups<F>; ++j)
    scales[j] = search_byte_scale<F>(weights + j * F::kGroupSize, importance + j * F::kGroupSize);
}

}  // namespace nibble
