// Formats with small integers t, and u, per group of weights beside a float16 d, and dmin, per
// block (K-quants): value = (d * t) * q, or (d * t) * q - dmin * u. A format F derives from
// SubScaleFormat<F> or SubMinFormat<F> and, besides what Uniform wants, gives kNumScales, kTMin,
// kTMax, sub_scale(block, group) and set_sub_scale(block, group, t); with mins also sub_min() and
// set_sub_min(), of the same range. Order of the scales: d, t_0, ...; or d, dmin, t_0, ..., u_0,
// ...
//
// In training t and u are real numbers in integer units, rounded straight-through in every forward
// pass. With g_j the LSQ gradient of group j's step and o_j that of its offset: dL/dt_j = d * g_j,
// dL/dd = sum_j t_j * g_j, dL/du_j = -dmin * o_j, dL/ddmin = -sum_j u_j * o_j.
#pragma once

#include "quant/format/uniform.h"

namespace nibble {

/// The nearest integer that a group can store.
template <class F>
NIBBLE_HD float snap_sub_scale(float t) {
  return round_to_even(clamp_to(t, F::kTMin, F::kTMax));
}

template <class F>
struct SubScaleFormat : Uniform<F> {
  static constexpr bool kHasOffset = false;
  static constexpr bool kHasSubScales = true;
  static constexpr bool kWeighsItself = true;

  template <class Block>
  static NIBBLE_HD void scales_of(const Block& block, float* scales) {
    scales[0] = float16_to_float(block.d);
    for (int j = 0; j < kNumGroups<F>; ++j)
      scales[1 + j] = static_cast<float>(F::sub_scale(block, j));
  }
  template <class Block>
  static NIBBLE_HD void set_scales(Block& block, const float* scales) {
    block.d = float_to_float16(scales[0]);
    for (int j = 0; j < kNumGroups<F>; ++j) F::set_sub_scale(block, j, round_to_int(scales[1 + j]));
  }
  static NIBBLE_HD void snap(const float* scales, float* snapped) {
    snapped[0] = snap_step(scales[0]);
    for (int j = 1; j <= kNumGroups<F>; ++j) snapped[j] = snap_sub_scale<F>(scales[j]);
  }
  static NIBBLE_HD Grid grid(const float* snapped, int group) {
    const float step = snapped[0] * snapped[1 + group];
    return {step, inverse_of(step), 0.0f};
  }
  static NIBBLE_HD void scale_gradients(const float* snapped, const float* step_sums, const float*,
                                        float* grad_scales) {
    float sum = 0.0f;
    for (int j = 0; j < kNumGroups<F>; ++j) {
      sum += snapped[1 + j] * step_sums[j];
      grad_scales[1 + j] = snapped[0] * step_sums[j];
    }
    grad_scales[0] = sum;
  }
};

template <class F>
struct SubMinFormat : Uniform<F> {
  static constexpr bool kHasOffset = true;
  static constexpr bool kHasSubScales = true;
  static constexpr bool kWeighsItself = true;

  template <class Block>
  static NIBBLE_HD void scales_of(const Block& block, float* scales) {
    scales[0] = float16_to_float(block.d);
    scales[1] = float16_to_float(block.dmin);
    for (int j = 0; j < kNumGroups<F>; ++j) {
      scales[2 + j] = static_cast<float>(F::sub_scale(block, j));
      scales[2 + kNumGroups<F> + j] = static_cast<float>(F::sub_min(block, j));
    }
  }
  template <class Block>
  static NIBBLE_HD void set_scales(Block& block, const float* scales) {
    block.d = float_to_float16(scales[0]);
    block.dmin = float_to_float16(scales[1]);
    for (int j = 0; j < kNumGroups<F>; ++j) {
      F::set_sub_scale(block, j, round_to_int(scales[2 + j]));
      F::set_sub_min(block, j, round_to_int(scales[2 + kNumGroups<F> + j]));
    }
  }
  static NIBBLE_HD void snap(const float* scales, float* snapped) {
    snapped[0] = snap_step(scales[0]);
    snapped[1] = snap_offset(scales[1]);
    for (int j = 2; j < 2 + 2 * kNumGroups<F>; ++j) snapped[j] = snap_sub_scale<F>(scales[j]);
  }
  static NIBBLE_HD Grid grid(const float* snapped, int group) {
    const float step = snapped[0] * snapped[2 + group];
    return {step, inverse_of(step), -(snapped[1] * snapped[2 + kNumGroups<F> + group])};
  }
  static NIBBLE_HD void scale_gradients(const float* snapped, const float* step_sums,
                                        const float* offset_sums, float* grad_scales) {
    const float *t = snapped + 2, *u = t + kNumGroups<F>;
    float *grad_t = grad_scales + 2, *grad_u = grad_t + kNumGroups<F>;
    float steps = 0.0f, offsets = 0.0f;
    for (int j = 0; j < kNumGroups<F>; ++j) {
      steps += t[j] * step_sums[j];
      offsets += u[j] * offset_sums[j];
      grad_t[j] = snapped[0] * step_sums[j];
      grad_u[j] = -(snapped[1] * offset_sums[j]);
    }
    grad_scales[0] = steps;
    grad_scales[1] = -offsets;
  }
};

}  // namespace nibble
