// EncodeMethod::kSearch and kRtn for formats with sub-scales (quant/format/sub_scales.h). Search,
// all groups of a block at once: the step (and offset) that suits each group best; then a d (and
// dmin) for which the groups' nearest integers fit well; then integers beside the nearest, and d
// and dmin fitted to all groups by least squares, in turn.
#pragma once

#include <limits>

#include "quant/format/lanes.h"
#include "quant/format/range.h"
#include "quant/format/search.h"
#include "quant/format/sub_scales.h"

namespace nibble {

/// A group of F's as a block of its own.
template <class F>
struct GroupOf {
  using Levels = typename F::Levels;
  static constexpr int kBlockSize = F::kGroupSize;
  static constexpr int kQMin = F::kQMin;
  static constexpr int kQMax = F::kQMax;
  static constexpr bool kHasOffset = false;
};

/// A number for each group of a block.
template <class F>
using PerGroup = float[kNumGroups<F>];

/// A block in lanes, and what suits each of its groups best: step, minus-offset and, there, the
/// mean of the q's; 0 for a group that is nearly 0.
template <class F>
struct SearchGroups {
  float weights[F::kBlockSize], importance[F::kBlockSize];
  PerGroup<F> importance_sums, mins, maxs;
  PerGroup<F> steps, down, levels;
};

template <class F>
struct GroupGrids {
  PerGroup<F> steps, offsets;
};

/// ResidualSums of each group.
template <class F>
struct GroupSums {
  PerGroup<F> rr, r, rq, q, qq;
};

template <class F>
NIBBLE_HD void group_sums(const SearchGroups<F>& block, const GroupGrids<F>& grids,
                          GroupSums<F>* sums) {
  constexpr int kLanes = kNumGroups<F>;
  PerGroup<F> inverse, rr = {}, r = {}, rq = {}, q = {}, qq = {};
  NIBBLE_EACH_LANE (l, kLanes) inverse[l] = inverse_of(grids.steps[l]);
  for (int first = 0; first < F::kBlockSize; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) {
      const Grid grid = {grids.steps[l], inverse[l], grids.offsets[l]};
      const float weight = block.weights[first + l], importance = block.importance[first + l];
      const float level = level_of<F>(weight, grid);
      const float residual = weight - value_of<F>(level, grid);
      const float weighted_residual = importance * residual, weighted_level = importance * level;
      rr[l] += weighted_residual * residual;
      rq[l] += weighted_residual * level;
      qq[l] += weighted_level * level;
      if (F::kHasOffset) {
        r[l] += weighted_residual;
        q[l] += weighted_level;
      }
    }
  }
  NIBBLE_EACH_LANE (l, kLanes) {
    sums->rr[l] = rr[l];
    sums->r[l] = r[l];
    sums->rq[l] = rq[l];
    sums->q[l] = q[l];
    sums->qq[l] = qq[l];
  }
}

/// The squared errors alone.
template <class F>
NIBBLE_HD void group_errors(const SearchGroups<F>& block, const GroupGrids<F>& grids,
                            float* errors) {
  constexpr int kLanes = kNumGroups<F>;
  PerGroup<F> inverse, rr = {};
  NIBBLE_EACH_LANE (l, kLanes) inverse[l] = inverse_of(grids.steps[l]);
  for (int first = 0; first < F::kBlockSize; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) {
      const Grid grid = {grids.steps[l], inverse[l], grids.offsets[l]};
      const float weight = block.weights[first + l];
      const float residual = weight - value_of<F>(level_of<F>(weight, grid), grid);
      rr[l] += block.importance[first + l] * residual * residual;
    }
  }
  NIBBLE_EACH_LANE (l, kLanes) errors[l] = rr[l];
}

/// Moves the grids to the least-squares fit for the codes that they gave, offsets at most 0 (u is
/// not negative); `errors`: those there.
template <class F>
NIBBLE_HD void refit_groups(const SearchGroups<F>& block, const GroupSums<F>& sums,
                            GroupGrids<F>* grids, float* errors) {
  NIBBLE_EACH_LANE (l, kNumGroups<F>) {
    const float rr = sums.rr[l], r = sums.r[l], rq = sums.rq[l], q = sums.q[l], qq = sums.qq[l];
    const float w = block.importance_sums[l], step = grids->steps[l], offset = grids->offsets[l];
    float by_step = rq / qq, by_offset = 0.0f, determinant = qq;
    if (F::kHasOffset) {
      determinant = w * qq - q * q;
      by_step = (w * rq - r * q) / determinant;
      by_offset = (qq * r - q * rq) / determinant;
      const float without_offset = (rq + offset * q) / qq;
      by_step = offset + by_offset > 0.0f ? without_offset : by_step;
      by_offset = offset + by_offset > 0.0f ? -offset : by_offset;
    }
    // With mins a negative step would count from the top.
    const bool moves = determinant > 0.0f && (!F::kHasOffset || step + by_step > 0.0f);
    grids->steps[l] = moves ? step + by_step : step;
    grids->offsets[l] = moves ? offset + by_offset : offset;
    const float change = by_step * (by_step * qq + 2.0f * (by_offset * q - rq)) +
                         by_offset * (by_offset * w - 2.0f * r);
    errors[l] = moves ? rr + change : rr;
  }
}

/// Clippings of a group's range that the search starts from, the deepest of kDeepest of the range:
/// coarse formats gain by cutting deep, fine ones do not. With mins, what is clipped is taken from
/// the top, from both ends or from the bottom; else both signs of the step are tried, as codes
/// reach further on one side of 0.
template <class F>
constexpr int kCuts = F::kHasOffset ? 8 : 5;
template <class F>
constexpr int kStarts = F::kHasOffset ? 1 + 3 * kCuts<F> : 2 * (1 + kCuts<F>);
template <class F>
constexpr float kDeepest = F::Levels::kCount > 11 ? 6.0f / (F::Levels::kCount - 1) : 0.75f;

template <class F>
NIBBLE_HD void starting_grids(const SearchGroups<F>& block, int start, GroupGrids<F>* grids) {
  constexpr float kLo = F::kQMin, kHi = F::kQMax;
  const int cuts = F::kHasOffset ? (start + 2) / 3 : start / 2;
  const float share = kDeepest<F> / kCuts<F> * static_cast<float>(cuts);
  const float part = 0.5f * static_cast<float>((start + 2) % 3);
  NIBBLE_EACH_LANE (l, kNumGroups<F>) {
    if (F::kHasOffset) {
      const float range = block.maxs[l] - block.mins[l], cut = range * share;
      const float offset = block.mins[l] + cut * part;
      grids->steps[l] = (range - cut) / kHi;
      grids->offsets[l] = offset < 0.0f ? offset : 0.0f;
    } else {
      const float top = start % 2 ? -block.mins[l] : block.maxs[l];
      const float bottom = start % 2 ? block.maxs[l] : -block.mins[l];
      const float up = (top > 0.0f ? top : 0.0f) / kHi;
      const float down = (bottom > 0.0f ? bottom : 0.0f) / -kLo;
      const float full = up > down ? up : down;
      grids->steps[l] = (start % 2 ? -full : full) * (1.0f - share);
      grids->offsets[l] = 0.0f;
    }
  }
}

/// Weights below make steps that are no normal numbers any more, or nearly so.
constexpr float kLeastGroup = 1e-30f;

/// Fills in steps, down and levels: the start whose refit is best, refitted on.
template <class F>
NIBBLE_HD void find_group_steps(SearchGroups<F>* block) {
  constexpr int kLanes = kNumGroups<F>, kRefits = 3;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  GroupGrids<F> from;
  GroupSums<F> sums;
  PerGroup<F> least;
  starting_grids<F>(*block, 0, &from);
  NIBBLE_EACH_LANE (l, kLanes) least[l] = kInfinity;
  for (int start = 0; start < kStarts<F>; ++start) {
    GroupGrids<F> grids;
    PerGroup<F> errors;
    starting_grids<F>(*block, start, &grids);
    group_sums<F>(*block, grids, &sums);
    refit_groups<F>(*block, sums, &grids, errors);
    NIBBLE_EACH_LANE (l, kLanes) {
      const bool better = errors[l] < least[l];
      least[l] = better ? errors[l] : least[l];
      from.steps[l] = better ? grids.steps[l] : from.steps[l];
      from.offsets[l] = better ? grids.offsets[l] : from.offsets[l];
    }
  }
  NIBBLE_EACH_LANE (l, kLanes) {
    least[l] = kInfinity;
    block->steps[l] = block->down[l] = block->levels[l] = 0.0f;
  }
  for (int round = 0; round < kRefits; ++round) {
    PerGroup<F> errors;
    group_sums<F>(*block, from, &sums);
    NIBBLE_EACH_LANE (l, kLanes) {
      const bool nonzero = block->maxs[l] >= kLeastGroup || -block->mins[l] >= kLeastGroup;
      const bool better = nonzero && sums.rr[l] < least[l];
      const float mean = sums.q[l] / block->importance_sums[l];
      const float level = block->importance_sums[l] > 0.0f ? mean : 0.0f;
      least[l] = better ? sums.rr[l] : least[l];
      block->steps[l] = better ? from.steps[l] : block->steps[l];
      block->down[l] = better ? 0.0f - from.offsets[l] : block->down[l];  // never -0
      block->levels[l] = better ? level : block->levels[l];
    }
    refit_groups<F>(*block, sums, &from, errors);
  }
}

template <class F>
NIBBLE_HD void load_groups(const float* weights, const float* importance, SearchGroups<F>* block) {
  constexpr int kLanes = kNumGroups<F>, kSize = F::kGroupSize;
  to_lanes<kSize, kLanes>(weights, block->weights);
  to_lanes<kSize, kLanes>(importance, block->importance);
  sum_lanes<kSize, kLanes>(block->importance, block->importance_sums);
  NIBBLE_EACH_LANE (l, kLanes) block->mins[l] = block->maxs[l] = block->weights[l];
  for (int first = kLanes; first < F::kBlockSize; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) {
      const float weight = block->weights[first + l];
      block->mins[l] = weight < block->mins[l] ? weight : block->mins[l];
      block->maxs[l] = weight > block->maxs[l] ? weight : block->maxs[l];
    }
  }
  if constexpr (F::kHasOffset) {
    NIBBLE_EACH_LANE (l, kLanes) block->mins[l] = block->mins[l] > 0.0f ? 0.0f : block->mins[l];
  }
}

/// d and dmin, as a block stores them.
struct SharedScales {
  float d, dmin;
};

template <class F>
struct GroupIntegers {
  PerGroup<F> t, u;
};

/// The integers nearest to the groups' steps, `aside` from there, and the u that keeps a group's
/// middle where it was: the nearest, or with `other` the second nearest.
template <class F>
NIBBLE_HD void nearest_integers(const SearchGroups<F>& block, const SharedScales& shared,
                                float aside, bool other, GroupIntegers<F>* integers) {
  const float inverse_d = inverse_of(shared.d), inverse_dmin = inverse_of(shared.dmin);
  const float beside = other ? 1.0f : 0.0f;
  NIBBLE_EACH_LANE (l, kNumGroups<F>) {
    const float t = snap_sub_scale<F>(snap_sub_scale<F>(block.steps[l] * inverse_d) + aside);
    integers->t[l] = t;
    integers->u[l] = 0.0f;
    if (F::kHasOffset) {
      const float moved = (shared.d * t - block.steps[l]) * block.levels[l];
      const float u = (block.down[l] + moved) * inverse_dmin, nearest = snap_sub_scale<F>(u);
      integers->u[l] = snap_sub_scale<F>(nearest + (u > nearest ? beside : -beside));
    }
  }
}

template <class F>
NIBBLE_HD void stored_grids(const SharedScales& shared, const GroupIntegers<F>& integers,
                            GroupGrids<F>* grids) {
  NIBBLE_EACH_LANE (l, kNumGroups<F>) {
    grids->steps[l] = shared.d * integers.t[l];
    grids->offsets[l] = F::kHasOffset ? -(shared.dmin * integers.u[l]) : 0.0f;
  }
}

template <class F>
NIBBLE_HD float sum_of(const float* groups) {
  float sum = 0.0f;
  NIBBLE_EACH_LANE (l, kNumGroups<F>) sum += groups[l];
  return sum;
}

/// d's, then dmin's, that the largest step and minus-offset suggest: they may take any of the
/// larger integers, as a d that is a little larger leaves the other groups elsewhere on their
/// grids.
constexpr int kSharedTrials = 6;
template <class F>
constexpr int kSharedCandidates = kSharedTrials * 2;

template <class F>
NIBBLE_HD SharedScales candidate_scales(const SharedScales& best, float largest_step,
                                        float largest_min, int i) {
  const float share = 1.03f - 0.04f * static_cast<float>(i % kSharedTrials);
  if (i >= kSharedTrials && F::kHasOffset)
    return {best.d, snap_offset(largest_min / (F::kTMax * share))};
  // Without mins the second half is of the other sign.
  const float extreme = i < kSharedTrials ? F::kTMax : F::kTMin;
  return {snap_step(largest_step / (extreme * share)), best.dmin};
}

template <class F>
NIBBLE_HD SharedScales find_shared_scales(const SearchGroups<F>& block) {
  float largest_step = 0.0f, largest_min = 0.0f;
  NIBBLE_EACH_LANE (l, kNumGroups<F>) {
    if (std::fabs(block.steps[l]) > std::fabs(largest_step)) largest_step = block.steps[l];
    if (block.down[l] > largest_min) largest_min = block.down[l];
  }
  SharedScales best = {snap_step(largest_step / F::kTMax), snap_offset(largest_min / F::kTMax)};
  float least = std::numeric_limits<float>::infinity();
  for (int i = 0; i < kSharedCandidates<F>; ++i) {
    const SharedScales shared = candidate_scales<F>(best, largest_step, largest_min, i);
    GroupIntegers<F> integers;
    GroupGrids<F> grids;
    PerGroup<F> errors;
    nearest_integers<F>(block, shared, 0.0f, false, &integers);
    stored_grids<F>(shared, integers, &grids);
    group_errors<F>(block, grids, errors);
    const float error = sum_of<F>(errors);
    if (!(error < least)) continue;
    least = error;
    best = shared;
  }
  return best;
}

/// For each group the best of the integers around its nearest.
template <class F>
NIBBLE_HD void choose_integers(const SearchGroups<F>& block, const SharedScales& shared,
                               GroupIntegers<F>* best) {
  constexpr int kChoices = F::kHasOffset ? 6 : 3;
  PerGroup<F> least;
  NIBBLE_EACH_LANE (l, kNumGroups<F>) {
    least[l] = std::numeric_limits<float>::infinity();
    best->t[l] = best->u[l] = 0.0f;
  }
  for (int choice = 0; choice < kChoices; ++choice) {
    GroupIntegers<F> integers;
    GroupGrids<F> grids;
    PerGroup<F> errors;
    nearest_integers<F>(block, shared, static_cast<float>((choice + 1) % 3 - 1), choice >= 3,
                        &integers);
    stored_grids<F>(shared, integers, &grids);
    group_errors<F>(block, grids, errors);
    NIBBLE_EACH_LANE (l, kNumGroups<F>) {
      const bool better = errors[l] < least[l];
      least[l] = better ? errors[l] : least[l];
      best->t[l] = better ? integers.t[l] : best->t[l];
      best->u[l] = better ? integers.u[l] : best->u[l];
    }
  }
}

/// d and dmin of the least-squares fit to all groups for their integers and codes: a = t q and b =
/// -u; the same where they are not determined.
template <class F>
NIBBLE_HD SharedScales refit_shared_scales(const SearchGroups<F>& block,
                                           const GroupIntegers<F>& integers,
                                           const GroupSums<F>& sums, const SharedScales& shared) {
  float aa = 0.0f, ab = 0.0f, bb = 0.0f, ar = 0.0f, br = 0.0f;
  NIBBLE_EACH_LANE (l, kNumGroups<F>) {
    const float t = integers.t[l], u = integers.u[l];
    aa += t * t * sums.qq[l];
    ab -= t * u * sums.q[l];
    bb += u * u * block.importance_sums[l];
    ar += t * sums.rq[l];
    br -= u * sums.r[l];
  }
  const bool with_min = F::kHasOffset && bb > 0.0f;
  const float determinant = with_min ? aa * bb - ab * ab : aa;
  if (!(determinant > 0.0f)) return shared;
  if (!with_min) return {snap_step(shared.d + ar / aa), shared.dmin};
  const float dmin = shared.dmin + (br * aa - ar * ab) / determinant;
  return {snap_step(shared.d + (ar * bb - br * ab) / determinant),
          snap_offset(dmin > 0.0f ? dmin : 0.0f)};
}

/// Scales of least weighted squared error found; false where the block is nearly 0. importance: at
/// most 1.
template <class F>
NIBBLE_HD bool search_sub_scales(const float* weights, const float* importance, float* scales) {
  constexpr int kRounds = 2, kFirst = 1 + F::kHasOffset;
  SearchGroups<F> block;
  load_groups<F>(weights, importance, &block);
  find_group_steps<F>(&block);
  SharedScales shared = find_shared_scales<F>(block);
  if (shared.d == 0.0f && shared.dmin == 0.0f) return false;
  float least = std::numeric_limits<float>::infinity();
  for (int round = 0; round < kRounds; ++round) {
    GroupIntegers<F> integers;
    GroupGrids<F> grids;
    GroupSums<F> sums;
    choose_integers<F>(block, shared, &integers);
    stored_grids<F>(shared, integers, &grids);
    group_sums<F>(block, grids, &sums);
    const float error = sum_of<F>(sums.rr);
    if (error < least) {
      least = error;
      scales[0] = shared.d;
      if (F::kHasOffset) scales[1] = shared.dmin;
      NIBBLE_EACH_LANE (l, kNumGroups<F>) {
        scales[kFirst + l] = integers.t[l];
        if (F::kHasOffset) scales[kFirst + kNumGroups<F> + l] = integers.u[l];
      }
    }
    shared = refit_shared_scales<F>(block, integers, sums, shared);
  }
  return least < std::numeric_limits<float>::infinity();
}

/// An integer for each of `values`, rounded away from 0, and the unit that they share: a little
/// more than the largest needs, so that rounding the unit to float16 makes no integer exceed its
/// largest.
template <class F>
NIBBLE_HD float range_unit(const float* values, float* integers) {
  float largest = 0.0f;
  for (int j = 0; j < kNumGroups<F>; ++j) {
    const float magnitude = std::fabs(values[j]);
    largest = magnitude > largest ? magnitude : largest;
  }
  const float unit = largest / static_cast<float>(F::kTMax) * (1.0f + 0x1p-10f);
  const float inverse = inverse_of(snap_step(unit));
  for (int j = 0; j < kNumGroups<F>; ++j)
    integers[j] = std::copysign(std::ceil(std::fabs(values[j]) * inverse), values[j]);
  return unit;
}

/// The scales that clamp no weight.
template <class F>
NIBBLE_HD void range_sub_scales(const float* weights, float* scales) {
  float steps[kNumGroups<F>];
  if constexpr (F::kHasOffset) {
    float mins[kNumGroups<F>], maxs[kNumGroups<F>];
    for (int j = 0; j < kNumGroups<F>; ++j) {
      float min = 0.0f;
      maxs[j] = weights[j * F::kGroupSize];
      for (int i = j * F::kGroupSize; i < (j + 1) * F::kGroupSize; ++i) {
        min = weights[i] < min ? weights[i] : min;
        maxs[j] = weights[i] > maxs[j] ? weights[i] : maxs[j];
      }
      mins[j] = 0.0f - min;  // never -0
    }
    float* u = scales + 2 + kNumGroups<F>;
    scales[1] = range_unit<F>(mins, u);
    for (int j = 0; j < kNumGroups<F>; ++j) {
      const float range = maxs[j] + snap_step(scales[1]) * u[j];
      steps[j] = (range > 0.0f ? range : 0.0f) / F::kQMax;
    }
  } else {
    for (int j = 0; j < kNumGroups<F>; ++j)
      range_scales<GroupOf<F>>(weights + j * F::kGroupSize, &steps[j]);
  }
  scales[0] = range_unit<F>(steps, scales + 1 + F::kHasOffset);
}

}  // namespace nibble
