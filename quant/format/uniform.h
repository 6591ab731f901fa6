// Block formats with a grid of levels: value = d * q, or d * q + m, with one grid per block or one
// per group of weights in it (K-quants). A format F derives from Uniform<F> and gives
//   kType, kFtype, Block, kBlockSize, kGroupSize, kQMin, kQMax (the q's that encoders use),
//   code(block, i) -> q of weight i, unpack(block, first, 16 q's), pack(q's, block), and
//   encode_ggml(weights, importance, block);
// where the q's are not all integers from kQMin to kQMax, Levels (quant/format/codebook.h);
// and, by StepFormat or StepOffsetFormat or of its own: kNumScales, kHasOffset,
//   scales_of(block, scales), set_scales(block, scales), snap(scales, snapped), grid(snapped,
//   group) and scale_gradients(snapped, step sums, offset sums, gradients): what the groups' sums
//   mean for the scales.
#pragma once

#include "quant/format/block.h"
#include "quant/format/estimator.h"
#include "quant/format/lanes.h"

namespace nibble {

/// Groups of weights with a grid of their own in a block.
template <class F>
constexpr int kNumGroups = F::kBlockSize / F::kGroupSize;

/// The q's of a format whose levels are evenly spaced: all integers from kQMin to kQMax.
template <class F>
struct EvenLevels {
  static constexpr int kCount = F::kQMax - F::kQMin + 1;
  static NIBBLE_HD int at(int i) { return F::kQMin + i; }
  /// Ties to even. A NaN stays NaN.
  static NIBBLE_HD float nearest(float x) { return round_to_even(clamp_to(x, F::kQMin, F::kQMax)); }
  /// No further than `margin` steps beyond the outer levels. With a half: whether rounding alone,
  /// without clamping, gives a level, ties included where they are the outer ones'.
  static NIBBLE_HD bool in_range(float x, float margin) {
    const float lowest = F::kQMin - margin, highest = F::kQMax + margin;
    const bool above = F::kQMin % 2 == 0 ? x >= lowest : x > lowest;
    const bool below = F::kQMax % 2 == 0 ? x <= highest : x < highest;
    return above & below;
  }
};

/// A weight in units of the grid's step.
template <class F>
NIBBLE_HD float in_steps(float w, const Grid& grid) {
  return F::kHasOffset ? (w - grid.offset) * grid.inverse : w * grid.inverse;
}

/// The q of least |value - w| as a float.
template <class F>
NIBBLE_HD float level_of(float w, const Grid& grid) {
  return F::Levels::nearest(in_steps<F>(w, grid));
}

/// One rounding per operation, in ggml's order.
template <class F>
NIBBLE_HD float value_of(float q, const Grid& grid) {
  return F::kHasOffset ? q * grid.step + grid.offset : q * grid.step;
}

/// What one weight adds to the gradients.
struct WeightGradient {
  float weight, step, offset;
};

/// What ApproxSign makes of a gradient of 1; 1 where the estimator does not bend it.
NIBBLE_HD float sign_slope(float x, const Estimator& estimator) {
  const float magnitude = x < 0.0f ? -x : x;
  const float slope = magnitude < 1.0f ? 2.0f - 2.0f * magnitude : 0.0f;
  return estimator.bent_sign * slope + (1.0f - estimator.bent_sign);
}

/// g: dL/dW^ of this weight. The estimator's parts are 0 or 1, so that products with them are
/// exact.
template <class F>
NIBBLE_HD WeightGradient gradient_of(float w, float g, const Grid& grid,
                                     const Estimator& estimator) {
  const float x = in_steps<F>(w, grid);
  const bool in_range = F::Levels::in_range(x, estimator.margin);
  // Selects of what both sides have: g++ makes vectors of nothing else here.
  const float kept = in_range ? g : 0.0f;
  const float rounded = estimator.rounded_part * (in_range ? x : 0.0f);
  const float passed = F::Levels::kCount == 2 ? kept * sign_slope(x, estimator) : kept;
  return {passed, g * (F::Levels::nearest(x) - rounded),
          estimator.offset_part * (g - estimator.rounded_part * kept)};
}

/// From one grid of a group to another: w -> w * scale + shift.
struct Follow {
  float scale, shift;
  NIBBLE_HD float apply(float w) const { return w * scale + shift; }
};

/// The map that keeps places between levels. The identity where the grid stays.
template <class F>
NIBBLE_HD Follow follow_of(const Grid& from, const Grid& to) {
  const bool turns = from.step != 0.0f && to.step != 0.0f && from.step != to.step;
  const float scale = turns ? to.step * from.inverse : 1.0f;
  return {scale, F::kHasOffset ? to.offset - from.offset * scale : 0.0f};
}

/// Sums over weights run in kChunk interleaved partial sums, folded here, on CPU and GPU alike: the
/// order is part of the definition, so that every instruction set gives the same bits.
template <class T>
NIBBLE_HD T fold_sums(T* sums) {
  for (int width = kChunk / 2; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) sums[k] += sums[k + width];
  }
  return sums[0];
}

template <class F>
struct Uniform {
  using Levels = EvenLevels<F>;
  /// Small integers per group beside the block's scales (quant/format/sub_scales.h).
  static constexpr bool kHasSubScales = false;
  /// Scales that are bytes, one per group, and do not train (quant/format/fp4.h).
  static constexpr bool kHasByteScales = false;
  /// Whether encode_ggml weighs importance by itself, instead of getting what weigh() makes of it.
  static constexpr bool kWeighsItself = false;

  /// out: kBlockSize weights.
  template <class Block>
  static NIBBLE_HD void decode(const Block& block, float* out) {
    float scales[F::kNumScales];
    F::scales_of(block, scales);
    for (int group = 0; group < kNumGroups<F>; ++group) {
      const Grid grid = F::grid(scales, group);
      for (int first = group * F::kGroupSize; first < (group + 1) * F::kGroupSize;
           first += kChunk) {
        int32_t codes[kChunk];
        F::unpack(block, first, codes);
        for (int k = 0; k < kChunk; ++k) {
          out[first + k] = value_of<F>(static_cast<float>(codes[k]), grid);
        }
      }
    }
  }

  template <class Block>
  static NIBBLE_HD void encode_with(const float* weights, const float* snapped, Block& block) {
    int8_t codes[F::kBlockSize];
    for (int group = 0; group < kNumGroups<F>; ++group) {
      const Grid grid = F::grid(snapped, group);
      for (int first = group * F::kGroupSize; first < (group + 1) * F::kGroupSize;
           first += kChunk) {
        // Two loops: g++ makes no vectors of what ends in bytes.
        int32_t levels[kChunk];
        NIBBLE_EACH_LANE (k, kChunk)
          levels[k] = round_to_int(level_of<F>(weights[first + k], grid));
        NIBBLE_EACH_LANE (k, kChunk) codes[first + k] = static_cast<int8_t>(levels[k]);
      }
    }
    F::set_scales(block, snapped);
    F::pack(codes, block);
  }

  static NIBBLE_HD void fake_quantize(const float* weights, const float* snapped, float* out) {
    for (int group = 0; group < kNumGroups<F>; ++group) {
      const Grid grid = F::grid(snapped, group);
#pragma GCC ivdep
      for (int i = group * F::kGroupSize; i < (group + 1) * F::kGroupSize; ++i) {
        out[i] = value_of<F>(level_of<F>(weights[i], grid), grid);
      }
    }
  }

  static NIBBLE_HD void fake_quantize_backward(const float* weights, const float* snapped,
                                               const float* grad_out, float* grad_weights,
                                               float* grad_scales, Estimator estimator) {
    float step_sums[kNumGroups<F>], offset_sums[kNumGroups<F>];
    for (int group = 0; group < kNumGroups<F>; ++group) {
      const Grid grid = F::grid(snapped, group);
      float steps[kChunk] = {}, offsets[kChunk] = {};
      for (int first = group * F::kGroupSize; first < (group + 1) * F::kGroupSize;
           first += kChunk) {
        NIBBLE_EACH_LANE (k, kChunk) {
          const WeightGradient part =
              gradient_of<F>(weights[first + k], grad_out[first + k], grid, estimator);
          grad_weights[first + k] = part.weight;
          steps[k] += part.step;
          if (F::kHasOffset) offsets[k] += part.offset;
        }
      }
      step_sums[group] = fold_sums(steps);
      offset_sums[group] = F::kHasOffset ? fold_sums(offsets) : 0.0f;
    }
    F::scale_gradients(snapped, step_sums, offset_sums, grad_scales);
  }

  static NIBBLE_HD void follow(float* weights, const float* from, const float* to) {
    for (int group = 0; group < kNumGroups<F>; ++group) {
      const Follow map = follow_of<F>(F::grid(from, group), F::grid(to, group));
#pragma GCC ivdep
      for (int i = group * F::kGroupSize; i < (group + 1) * F::kGroupSize; ++i) {
        weights[i] = map.apply(weights[i]);
      }
    }
  }

  /// dL/dscales where the block's codes stay as they are: value = step * q (+ offset) is then
  /// smooth in step and offset. Its scales are not read: `snapped` are those that hold.
  template <class Block>
  static NIBBLE_HD void code_gradients(const Block& block, const float* snapped,
                                       const float* grad_out, float* grad_scales) {
    float step_sums[kNumGroups<F>], offset_sums[kNumGroups<F>];
    for (int group = 0; group < kNumGroups<F>; ++group) {
      float steps[kChunk] = {}, offsets[kChunk] = {};
      for (int first = group * F::kGroupSize; first < (group + 1) * F::kGroupSize;
           first += kChunk) {
        int32_t codes[kChunk];
        F::unpack(block, first, codes);
        for (int k = 0; k < kChunk; ++k) {
          steps[k] += grad_out[first + k] * static_cast<float>(codes[k]);
          if (F::kHasOffset) offsets[k] += grad_out[first + k];
        }
      }
      step_sums[group] = fold_sums(steps);
      offset_sums[group] = F::kHasOffset ? fold_sums(offsets) : 0.0f;
    }
    F::scale_gradients(snapped, step_sums, offset_sums, grad_scales);
  }
};

/// One step d per block.
template <class F>
struct StepFormat : Uniform<F> {
  static constexpr int kNumScales = 1;
  static constexpr bool kHasOffset = false;

  template <class Block>
  static NIBBLE_HD void scales_of(const Block& block, float* scales) {
    scales[0] = float16_to_float(block.d);
  }
  template <class Block>
  static NIBBLE_HD void set_scales(Block& block, const float* scales) {
    block.d = float_to_float16(scales[0]);
  }
  static NIBBLE_HD void snap(const float* scales, float* snapped) {
    snapped[0] = snap_step(scales[0]);
  }
  static NIBBLE_HD Grid grid(const float* snapped, int) {
    return {snapped[0], inverse_of(snapped[0]), 0.0f};
  }
  static NIBBLE_HD void scale_gradients(const float*, const float* step_sums, const float*,
                                        float* grad_scales) {
    grad_scales[0] = step_sums[0];
  }
};

/// A step d and an offset m per block.
template <class F>
struct StepOffsetFormat : Uniform<F> {
  static constexpr int kNumScales = 2;
  static constexpr bool kHasOffset = true;

  template <class Block>
  static NIBBLE_HD void scales_of(const Block& block, float* scales) {
    scales[0] = float16_to_float(block.d);
    scales[1] = float16_to_float(block.m);
  }
  template <class Block>
  static NIBBLE_HD void set_scales(Block& block, const float* scales) {
    block.d = float_to_float16(scales[0]);
    block.m = float_to_float16(scales[1]);
  }
  static NIBBLE_HD void snap(const float* scales, float* snapped) {
    snapped[0] = snap_step(scales[0]);
    snapped[1] = snap_offset(scales[1]);
  }
  static NIBBLE_HD Grid grid(const float* snapped, int) {
    return {snapped[0], inverse_of(snapped[0]), snapped[1]};
  }
  static NIBBLE_HD void scale_gradients(const float*, const float* step_sums,
                                        const float* offset_sums, float* grad_scales) {
    grad_scales[0] = step_sums[0];
    grad_scales[1] = offset_sums[0];
  }
};

}  // namespace nibble
