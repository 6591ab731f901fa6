// EncodeMethod::kSearch and kRtn for formats whose scales are bytes, one per group of weights
// (quant/format/fp4.h). There are so few of them that search tries each that could be best.
#pragma once

#include "quant/format/search_sub_scales.h"

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

/// The scale of least weighted squared error of those from a half of the range's to the one that
/// makes the largest weight 1.
template <class F>
NIBBLE_HD float search_byte_scale(const SearchBlock& group) {
  const float largest = std::fmax(group.max, -group.min);
  const float range = F::nearest_scale(F::range_scale(largest));
  const int first = F::byte_of_scale(F::nearest_scale(0.5f * range));
  const int last = F::byte_of_scale(F::nearest_scale(largest));
  float best = range, error = std::numeric_limits<float>::infinity();
  for (int byte = first; byte <= last; ++byte) {
    const float scale = F::scale_of_byte(byte);
    const ResidualSums sums = residual_sums<GroupOf<F>>(group, F::grid(&scale, 0));
    if (!(sums.rr < error)) continue;
    error = sums.rr;
    best = scale;
  }
  return best;
}

template <class F>
NIBBLE_HD void search_byte_scales(const float* weights, const float* importance, float* scales) {
  for (int j = 0; j < kNumGroups<F>; ++j)
    scales[j] = search_byte_scale<F>(search_block_of<F::kGroupSize>(
        weights + j * F::kGroupSize, importance + j * F::kGroupSize));
}

}  // namespace nibble
