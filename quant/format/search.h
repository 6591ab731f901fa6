// EncodeMethod::kSearch for formats with one grid per block: scales of least weighted squared
// error. First the scales of a block that lies on a grid already; else scales over a range of
// clippings, each judged by the error after a least-squares refit; the best of them refitted and
// rounded until it no longer improves, then its float16 neighbours. What it starts from (ggml's
// choice) stands unless an error in double is lower.
#pragma once

#include <cmath>
#include <limits>

#include "quant/format/uniform.h"

namespace nibble {

/// A block to encode. weights and importance: kBlockSize numbers, importance at most 1.
struct SearchBlock {
  const float* weights;
  const float* importance;
  float importance_sum;
  float min, max;
};

/// Weighted sums over the block of r = w - value, and of the q's, for one grid.
struct ResidualSums {
  float rr, r, rq, q, qq;
};

/// Snapped scales and the error that they give.
struct SearchBest {
  float scales[2];
  float error = std::numeric_limits<float>::infinity();
};

template <class F>
NIBBLE_HD ResidualSums residual_sums(const SearchBlock& block, const Grid& grid) {
  float rr[kChunk] = {}, r[kChunk] = {}, rq[kChunk] = {}, q[kChunk] = {}, qq[kChunk] = {};
  for (int first = 0; first < F::kBlockSize; first += kChunk) {
    for (int k = 0; k < kChunk; ++k) {
      const float weight = block.weights[first + k];
      const float level = level_of<F>(weight, grid);
      const float residual = weight - value_of<F>(level, grid);
      const float weighted_residual = block.importance[first + k] * residual;
      const float weighted_level = block.importance[first + k] * level;
      rr[k] += weighted_residual * residual;
      rq[k] += weighted_residual * level;
      qq[k] += weighted_level * level;
      if (F::kHasOffset) {
        r[k] += weighted_residual;
        q[k] += weighted_level;
      }
    }
  }
  if (!F::kHasOffset) return {fold_sums(rr), 0.0f, fold_sums(rq), 0.0f, fold_sums(qq)};
  return {fold_sums(rr), fold_sums(r), fold_sums(rq), fold_sums(q), fold_sums(qq)};
}

/// Moves the scales to the least-squares fit for the codes that they gave; returns the error there.
template <class F>
NIBBLE_HD float refit(const SearchBlock& block, const ResidualSums& sums, float* scales) {
  if constexpr (F::kHasOffset) {
    const float determinant = block.importance_sum * sums.qq - sums.q * sums.q;
    if (!(determinant > 0.0f)) return sums.rr;
    const float step = (block.importance_sum * sums.rq - sums.r * sums.q) / determinant;
    const float offset = (sums.qq * sums.r - sums.q * sums.rq) / determinant;
    scales[0] += step;
    scales[1] += offset;
    return sums.rr - step * sums.rq - offset * sums.r;
  } else {
    if (!(sums.qq > 0.0f)) return sums.rr;
    const float step = sums.rq / sums.qq;
    scales[0] += step;
    return sums.rr - step * sums.rq;
  }
}

/// Snaps the scales, keeps them if they are the best yet, and moves them on to their refit; returns
/// its error.
template <class F>
NIBBLE_HD float assess(const SearchBlock& block, float* scales, SearchBest* best) {
  float snapped[2];
  F::snap(scales, snapped);
  const ResidualSums sums = residual_sums<F>(block, F::grid(snapped, 0));
  if (sums.rr < best->error) {
    best->error = sums.rr;
    memcpy(best->scales, snapped, sizeof snapped);
  }
  memcpy(scales, snapped, sizeof snapped);
  return refit<F>(block, sums, scales);
}

/// The float16 `steps` further from 0.
NIBBLE_HD float neighbour(float x, int steps) {
  return float16_to_float(static_cast<uint16_t>(float_to_float16(x) + steps));
}

/// From one start: refits while they help, then the neighbours of the best.
template <class F>
NIBBLE_HD void refine(const SearchBlock& block, const float* start, SearchBest* best) {
  constexpr int kMaxRefits = 6;
  float scales[2] = {start[0], start[1]};
  SearchBest own;
  float error = own.error;
  for (int i = 0; i < kMaxRefits; ++i) {
    assess<F>(block, scales, &own);
    if (!(own.error < error)) break;
    error = own.error;
  }
  const float centre[2] = {own.scales[0], own.scales[1]};
  for (int i = -1; i <= 1; ++i) {
    for (int j = F::kHasOffset ? -1 : 0; j <= (F::kHasOffset ? 1 : 0); ++j) {
      scales[0] = neighbour(centre[0], i);
      if (F::kHasOffset) scales[1] = neighbour(centre[1], j);
      assess<F>(block, scales, &own);
    }
  }
  if (own.error < best->error) *best = own;
}

/// How far down from the full range the clipping goes: coarse formats gain by cutting deep, fine
/// ones do not.
template <class F>
constexpr float kLeastRange = F::Levels::kCount > 11 ? 1.0f - 8.0f / (F::Levels::kCount - 1)
                                                     : 0.25f;
constexpr int kClippings = 16;

template <class F>
NIBBLE_HD float clipping(int i) {
  return 1.0f - (1.0f - kLeastRange<F>)*static_cast<float>(i) / (kClippings - 1);
}

/// One step: both signs, as the codes reach further on one side of 0.
template <class F>
NIBBLE_HD void search_step(const SearchBlock& block, SearchBest* best) {
  constexpr float kLo = F::kQMin, kHi = F::kQMax;
  for (int sign = 1; sign >= (kLo == -kHi ? 1 : -1); sign -= 2) {
    const float up = std::fmax(sign > 0 ? block.max : -block.min, 0.0f);
    const float down = std::fmax(sign > 0 ? -block.min : block.max, 0.0f);
    const float full = std::fmax(up / kHi, down / -kLo) * static_cast<float>(sign);
    float start[2] = {full, 0.0f};
    float least = std::numeric_limits<float>::infinity();
    for (int i = 0; i < kClippings; ++i) {
      float scales[2] = {full * clipping<F>(i), 0.0f};
      const float error = assess<F>(block, scales, best);
      if (error < least) {
        least = error;
        start[0] = scales[0];
      }
    }
    refine<F>(block, start, best);
  }
}

/// A step and an offset: what is clipped is taken from the top, from both ends, or from the bottom.
template <class F>
NIBBLE_HD void search_step_offset(const SearchBlock& block, SearchBest* best) {
  const float range = block.max - block.min;
  float start[2] = {range / F::kQMax, block.min};
  float least = std::numeric_limits<float>::infinity();
  for (int i = 0; i < kClippings; ++i) {
    const float cut = range - range * clipping<F>(i);
    for (int side = 0; side < (i == 0 ? 1 : 3); ++side) {
      float scales[2] = {(range - cut) / F::kQMax,
                         block.min + cut * (0.5f * static_cast<float>(side))};
      const float error = assess<F>(block, scales, best);
      if (error < least) {
        least = error;
        memcpy(start, scales, sizeof start);
      }
    }
  }
  refine<F>(block, start, best);
}

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
template <class F>
NIBBLE_HD bool find_exact_step(const SearchBlock& block, float* scales) {
  // A float16 step times a code of up to 7 bits fills 18 of the 24 bits of a float.
  uint32_t used = 0;
  for (int i = 0; i < F::kBlockSize; ++i) used |= bits_of(block.weights[i]);
  if ((used & 63u) != 0) return false;
  const float extreme = block.max > -block.min ? block.max : block.min;
  for (int i = 0; i < F::Levels::kCount; ++i) {
    const int q = F::Levels::at(i);
    if (q == 0) continue;
    const float scale = extreme / static_cast<float>(q);
    F::snap(&scale, scales);
    if (lies_on<F>(block.weights, F::grid(scales, 0))) return true;
  }
  return false;
}

/// Whether the weights' distances from the smallest are multiples of a step. A sixteenth: what
/// rounding an offset some thousand times the step leaves; lies_on() decides.
template <class F>
NIBBLE_HD bool looks_even(const SearchBlock& block, float inverse) {
  for (int first = 0; first < F::kBlockSize; first += kChunk) {
    int off = 0;
    for (int k = 0; k < kChunk; ++k) {
      const float x = (block.weights[first + k] - block.min) * inverse;
      off |= std::fabs(x - round_to_even(x)) > 0.0625f;
    }
    if (off) return false;
  }
  return true;
}

/// The step and offset of a block that lies on such a grid: the range is `span` steps, the weight
/// at the lower end has some code.
template <class F>
NIBBLE_HD bool find_exact_step_offset(const SearchBlock& block, float* scales) {
  for (int span = F::kQMax; span >= 1; --span) {
    const float step = snap_step((block.max - block.min) / static_cast<float>(span));
    if (!looks_even<F>(block, inverse_of(step))) continue;
    for (int sign = 1; sign >= -1; sign -= 2) {
      const float low_end = sign > 0 ? block.min : block.max;
      for (int code = 0; code <= F::kQMax - span; ++code) {
        scales[0] = step * static_cast<float>(sign);
        scales[1] = snap_offset(low_end - static_cast<float>(code) * scales[0]);
        if (lies_on<F>(block.weights, F::grid(scales, 0))) return true;
      }
    }
  }
  return false;
}

template <class F>
NIBBLE_HD SearchBest search_scales(const SearchBlock& block) {
  SearchBest best;
  if constexpr (F::kHasOffset) {
    if (find_exact_step_offset<F>(block, best.scales)) return best;
    search_step_offset<F>(block, &best);
  } else {
    if (find_exact_step<F>(block, best.scales)) return best;
    search_step<F>(block, &best);
  }
  return best;
}

}  // namespace nibble
