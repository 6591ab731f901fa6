// EncodeMethod::kSearch and kRtn for formats with sub-scales (quant/format/sub_scales.h). Search:
// the step (and offset) that suits each group best, by search.h; then, for several sub-scales of
// the group with the largest step, d (and dmin) from them, the groups' integers beside their steps,
// and d and dmin fitted to all by least squares.
#pragma once

#include <type_traits>

#include "quant/format/range.h"
#include "quant/format/search.h"
#include "quant/format/sub_scales.h"

namespace nibble {

template <class F, class Group>
using GroupBase = std::conditional_t<F::kHasOffset, StepOffsetFormat<Group>, StepFormat<Group>>;

/// A group of F's as a block of its own, whose scales are any floats.
template <class F>
struct GroupOf : GroupBase<F, GroupOf<F>> {
  static constexpr int kBlockSize = F::kGroupSize;
  static constexpr int kGroupSize = F::kGroupSize;
  static constexpr int kQMin = F::kQMin;
  static constexpr int kQMax = F::kQMax;
  static NIBBLE_HD void snap(const float* scales, float* snapped) {
    for (int i = 0; i < 1 + F::kHasOffset; ++i) snapped[i] = scales[i];
  }
};

/// A block's groups, and the step and minus-offset that suit each best; 0 for a group that is
/// nearly 0. largest: by magnitude.
template <class F>
struct SearchGroups {
  SearchBlock groups[kNumGroups<F>];
  float steps[kNumGroups<F>], mins[kNumGroups<F>];
  float largest_step = 0.0f, largest_min = 0.0f;
};

/// Weights below make steps that are no normal numbers any more, or nearly so.
constexpr float kLeastGroup = 1e-30f;

/// Step and minus-offset of a group; u is not negative, so neither is minus the offset.
template <class F>
NIBBLE_HD void find_group_step(SearchBlock* group, float* step, float* min) {
  *step = *min = 0.0f;
  if (std::fmax(group->max, -group->min) < kLeastGroup) return;
  if (F::kHasOffset && group->min > 0.0f) group->min = 0.0f;
  const SearchBest best = search_scales<GroupOf<F>>(*group);
  *step = best.scales[0];
  if (!F::kHasOffset) return;
  // A negative step would count from the top.
  if (*step > 0.0f && best.scales[1] <= 0.0f) {
    *min = 0.0f - best.scales[1];  // never -0
  } else {
    *min = 0.0f - group->min;
    *step = (group->max - group->min) / static_cast<float>(F::kQMax);
  }
}

template <class F>
NIBBLE_HD void find_group_steps(const float* weights, const float* importance,
                                  SearchGroups<F>* found) {
  for (int j = 0; j < kNumGroups<F>; ++j) {
    const float* group = weights + j * F::kGroupSize;
    SearchBlock& search = found->groups[j];
    search = {group, importance + j * F::kGroupSize, 0.0f, group[0], group[0]};
    for (int i = 0; i < F::kGroupSize; ++i) {
      search.importance_sum += search.importance[i];
      search.min = group[i] < search.min ? group[i] : search.min;
      search.max = group[i] > search.max ? group[i] : search.max;
    }
    find_group_step<F>(&search, &found->steps[j], &found->mins[j]);
    if (std::fabs(found->steps[j]) > std::fabs(found->largest_step))
      found->largest_step = found->steps[j];
    if (found->mins[j] > found->largest_min) found->largest_min = found->mins[j];
  }
}

/// Of a group on the grid of integers t and u.
template <class F>
NIBBLE_HD ResidualSums group_sums(const SearchBlock& group, const float* snapped, float t,
                                    float u) {
  const float step = snapped[0] * t;
  const float offset = F::kHasOffset ? -(snapped[1] * u) : 0.0f;
  return residual_sums<GroupOf<F>>(group, {step, inverse_of(step), offset});
}

/// The best of the integers around the group's own step and minus-offset; their sums.
template <class F>
NIBBLE_HD ResidualSums choose_integers(const SearchGroups<F>& found, int group,
                                         const float* snapped, float* t, float* u) {
  const float middle_t = snap_sub_scale<F>(found.steps[group] * inverse_of(snapped[0]));
  const float middle_u =
      F::kHasOffset ? snap_sub_scale<F>(found.mins[group] * inverse_of(snapped[1])) : 0.0f;
  *t = middle_t;
  *u = middle_u;
  ResidualSums best = group_sums<F>(found.groups[group], snapped, *t, *u);
  for (int down = -1; down <= 1; ++down) {
    for (int across = F::kHasOffset ? -1 : 0; across <= (F::kHasOffset ? 1 : 0); ++across) {
      if (down == 0 && across == 0) continue;
      const float trial_t = snap_sub_scale<F>(middle_t + static_cast<float>(down));
      const float trial_u =
          F::kHasOffset ? snap_sub_scale<F>(middle_u + static_cast<float>(across)) : 0.0f;
      const ResidualSums sums = group_sums<F>(found.groups[group], snapped, trial_t, trial_u);
      if (!(sums.rr < best.rr)) continue;
      best = sums;
      *t = trial_t;
      *u = trial_u;
    }
  }
  return best;
}

/// Normal equations of d and dmin for given integers and codes: a = t q and b = -u.
struct BlockSums {
  float error = 0.0f, aa = 0.0f, ab = 0.0f, bb = 0.0f, ar = 0.0f, br = 0.0f;

  NIBBLE_HD void add(const ResidualSums& sums, float weight, float t, float u) {
    error += sums.rr;
    aa += t * t * sums.qq;
    ab -= t * u * sums.q;
    bb += u * u * weight;
    ar += t * sums.rq;
    br -= u * sums.r;
  }
  /// Moves d and dmin to the least-squares fit; false where they are not determined.
  NIBBLE_HD bool refit(bool has_offset, float* scales) const {
    const float determinant = has_offset && bb > 0.0f ? aa * bb - ab * ab : aa;
    if (!(determinant > 0.0f)) return false;
    if (!has_offset || !(bb > 0.0f)) {
      scales[0] += ar / aa;
      return true;
    }
    scales[0] += (ar * bb - br * ab) / determinant;
    const float dmin = scales[1] + (br * aa - ar * ab) / determinant;
    scales[1] = dmin > 0.0f ? dmin : 0.0f;
    return true;
  }
};

/// From one d and dmin: integers, refit, integers again. Keeps in `best` the scales of least error.
template <class F>
NIBBLE_HD void fit_sub_scales(const SearchGroups<F>& found, float d, float dmin, float* best,
                                float* best_error) {
  constexpr int kRounds = 2, kFirst = 1 + F::kHasOffset;
  float start[2] = {d, dmin};
  for (int round = 0; round < kRounds; ++round) {
    float scales[F::kNumScales];
    BlockSums sums;
    scales[0] = start[0] = snap_step(start[0]);
    if (F::kHasOffset) scales[1] = start[1] = snap_offset(start[1]);
    for (int j = 0; j < kNumGroups<F>; ++j) {
      float t, u;
      const ResidualSums group = choose_integers<F>(found, j, start, &t, &u);
      sums.add(group, found.groups[j].importance_sum, t, u);
      scales[kFirst + j] = t;
      if (F::kHasOffset) scales[kFirst + kNumGroups<F> + j] = u;
    }
    if (sums.error < *best_error) {
      *best_error = sums.error;
      memcpy(best, scales, sizeof scales);
    }
    if (!sums.refit(F::kHasOffset, start)) return;
  }
}

/// Scales of least weighted squared error found; false where the block is nearly 0.
template <class F>
NIBBLE_HD bool search_sub_scales(const float* weights, const float* importance, float* scales) {
  SearchGroups<F> found;
  find_group_steps<F>(weights, importance, &found);
  if (found.largest_step == 0.0f && found.largest_min == 0.0f) return false;
  // The largest step may take any of the larger t's: a d that is a little larger leaves the others
  // elsewhere on their grids.
  constexpr int kTrials = 6;
  const float dmin = found.largest_min / static_cast<float>(F::kTMax);
  float error = std::numeric_limits<float>::infinity();
  for (int sign = 1; sign >= (F::kTMin < 0 ? -1 : 1); sign -= 2) {
    const float extreme = static_cast<float>(sign > 0 ? F::kTMax : F::kTMin);
    for (int trial = 0; trial < kTrials; ++trial) {
      const float t = extreme * (1.0f - 0.04f * static_cast<float>(trial));
      fit_sub_scales<F>(found, found.largest_step / t, dmin, scales, &error);
    }
  }
  return error < std::numeric_limits<float>::infinity();
}

/// An integer for each of `values`, rounded away from 0, and the unit that they share: a little
/// more than the largest needs, so that rounding the unit to float16 makes no integer exceed its
/// largest.
template <class F>
NIBBLE_HD float range_unit(const float* values, float* integers) {
  float largest = 0.0f;
  for (int j = 0; j < kNumGroups<F>; ++j) largest = std::fmax(largest, std::fabs(values[j]));
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
        min = std::fmin(min, weights[i]);
        maxs[j] = std::fmax(maxs[j], weights[i]);
      }
      mins[j] = 0.0f - min;  // never -0
    }
    float* u = scales + 2 + kNumGroups<F>;
    scales[1] = range_unit<F>(mins, u);
    for (int j = 0; j < kNumGroups<F>; ++j)
      steps[j] = std::fmax(0.0f, maxs[j] + snap_step(scales[1]) * u[j]) / F::kQMax;
  } else {
    for (int j = 0; j < kNumGroups<F>; ++j)
      range_scales<GroupOf<F>>(weights + j * F::kGroupSize, &steps[j]);
  }
  scales[0] = range_unit<F>(steps, scales + 1 + F::kHasOffset);
}

}  // namespace nibble
