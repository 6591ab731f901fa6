// The scales of a block that lies on a grid already, such as one that was quantized before: it is
// recovered without error, where rounded scales that minimize an error may miss it.
#pragma once

#include <cmath>

#include "quant/format/uniform.h"

namespace nibble {

/// How far from whole steps the weights of a block on a grid may seem to be. Without an offset:
/// three roundings of at most 128 steps, times 2^-24. With one: a sixteenth, what rounding an
/// offset some thousand times the step leaves. Nearness is no proof; lies_on() decides.
template <class F>
constexpr float kGridTolerance = F::kHasOffset ? 0.0625f : 0x1p-12f;

template <class F>
NIBBLE_HD bool lies_on(const float* weights, const Grid& grid) {
  for (int first = 0; first < F::kBlockSize; first += kChunk) {
    int off = 0;
    for (int k = 0; k < kChunk; ++k) {
      const float weight = weights[first + k];
      off |= value_of<F>(level_of<F>(weight, grid), grid) != weight;
    }
    if (off) return false;
  }
  return true;
}

/// The step of a block whose weights are multiples of one: that of the largest is one of the codes.
/// scales: written when there is one.
template <class F>
NIBBLE_HD void find_exact_step(const float* weights, float min, float max, float* scales) {
  // A float16 step times a code of up to 7 bits fills 18 of the 24 bits of a float.
  uint32_t used = 0;
  for (int i = 0; i < F::kBlockSize; ++i) used |= bits_of(weights[i]);
  if ((used & 63u) != 0) return;
  const float extreme = max > -min ? max : min;
  for (int i = 0; i < F::Levels::kCount; ++i) {
    const int q = F::Levels::at(i);
    if (q == 0) continue;
    const float scale = extreme / static_cast<float>(q);
    float snapped;
    F::snap(&scale, &snapped);
    if (!lies_on<F>(weights, F::grid(&snapped, 0))) continue;
    scales[0] = snapped;
    return;
  }
}

/// Whether the weights' distances from the smallest seem to be multiples of a step.
template <class F>
NIBBLE_HD bool looks_even(const float* weights, float min, float inverse) {
  for (int first = 0; first < F::kBlockSize; first += kChunk) {
    int off = 0;
    for (int k = 0; k < kChunk; ++k) {
      const float x = (weights[first + k] - min) * inverse;
      off |= std::fabs(x - round_to_even(x)) > kGridTolerance<F>;
    }
    if (off) return false;
  }
  return true;
}

/// The step and offset of a block that lies on such a grid: the range is `span` steps, the weight
/// at the lower end has some code.
template <class F>
NIBBLE_HD void find_exact_step_offset(const float* weights, float min, float max, float* scales) {
  for (int span = F::kQMax; span >= 1; --span) {
    const float step = snap_step((max - min) / static_cast<float>(span));
    if (!looks_even<F>(weights, min, inverse_of(step))) continue;
    for (int sign = 1; sign >= -1; sign -= 2) {
      const float low_end = sign > 0 ? min : max;
      for (int code = 0; code <= F::kQMax - span; ++code) {
        float trial[2] = {step * static_cast<float>(sign), 0.0f};
        trial[1] = snap_offset(low_end - static_cast<float>(code) * trial[0]);
        if (!lies_on<F>(weights, F::grid(trial, 0))) continue;
        scales[0] = trial[0];
        scales[1] = trial[1];
        return;
      }
    }
  }
}

/// Replaces `scales` by those of the grid that the weights lie on, if they do. min, max: of the
/// weights.
template <class F>
NIBBLE_HD void find_exact_grid(const float* weights, float min, float max, float* scales) {
  if constexpr (F::kHasOffset)
    find_exact_step_offset<F>(weights, min, max, scales);
  else
    find_exact_step<F>(weights, min, max, scales);
}

}  // namespace nibble
