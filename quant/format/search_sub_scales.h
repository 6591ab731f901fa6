// EncodeMethod::kSearch and kRtn for formats with sub-scales (quant/format/sub_scales.h). Search,
// all groups of a block at once: what suits each group best (sub_scale_groups.h); then a d (and
// dmin) near whose multiples that lies; then integers beside the nearest, and d and dmin fitted to
// all groups by least squares, in turn. Where the groups lie on grids already, once more from there
// (exact_sub_scales.h).
#pragma once

#include <limits>

#include "quant/format/exact_sub_scales.h"
#include "quant/format/range.h"
#include "quant/format/sub_scale_groups.h"

namespace nibble {

/// The squared errors alone.
template <class F>
NIBBLE_HD void group_errors(const GroupTile<F>& tile, const GroupScales<F>& grids, float* errors) {
  constexpr int kLanes = kNumGroups<F>;
  PerGroup<F> inverse;
  NIBBLE_EACH_LANE (l, kLanes) {
    inverse[l] = inverse_of(grids.step[l]);
    errors[l] = 0.0f;
  }
  for (int first = 0; first < F::kGroupSize; first += kRun) {
    NIBBLE_EACH_LANE (l, kLanes) {
      const Grid grid = {grids.step[l], inverse[l], grids.offset[l]};
      float error = errors[l];
      NIBBLE_UNROLL
      for (int k = 0; k < kRun; ++k) {
        const float weight = tile.weights[(first + k) * kLanes + l];
        const float importance = tile.importance[(first + k) * kLanes + l];
        const float level = nearest_level<GroupOf<F>>(in_steps<F>(weight, grid));
        const float residual = weight - value_of<F>(level, grid);
        error += importance * residual * residual;
      }
      errors[l] = error;
    }
  }
}

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
                            GroupScales<F>* grids) {
  NIBBLE_EACH_LANE (l, kNumGroups<F>) {
    grids->step[l] = shared.d * integers.t[l];
    grids->offset[l] = F::kHasOffset ? -(shared.dmin * integers.u[l]) : 0.0f;
  }
}

/// d's, then dmin's, that are tried, in lanes: the largest step and minus-offset may take any of
/// the larger integers, as a d that is a little larger leaves the other groups elsewhere on their
/// grids.
constexpr int kSharedTrials = 16;
NIBBLE_HD float share_of_trial(int i) { return 1.03f - 0.02f * static_cast<float>(i); }

/// The trial of least loss, the first of several.
NIBBLE_HD int least_of_trials(const float* losses) {
  int best = 0;
  for (int i = 1; i < kSharedTrials; ++i) best = losses[i] < losses[best] ? i : best;
  return best;
}

/// A step or minus-offset of which the groups' own are multiples, nearly, and what that loses.
struct SharedUnit {
  float unit, loss;
};

/// The best of those that make `largest` some share of `most` units. values, costs: each group's
/// own, and what the square of a distance from it costs, about: as if codes stayed.
template <class F>
NIBBLE_HD SharedUnit find_shared_unit(const float* values, const float* costs, float largest,
                                      float most) {
  float units[kSharedTrials], inverses[kSharedTrials], losses[kSharedTrials];
  NIBBLE_EACH_LANE (i, kSharedTrials) {
    units[i] = snap_step(largest / (most * share_of_trial(i)));
    inverses[i] = inverse_of(units[i]);
    losses[i] = 0.0f;
  }
  for (int l = 0; l < kNumGroups<F>; ++l) {
    NIBBLE_EACH_LANE (i, kSharedTrials) {
      const float miss = units[i] * snap_sub_scale<F>(values[l] * inverses[i]) - values[l];
      losses[i] += costs[l] * miss * miss;
    }
  }
  const int best = least_of_trials(losses);
  return {units[best], losses[best]};
}

template <class F>
NIBBLE_HD SharedScales find_shared_scales(const SearchGroups<F>& block) {
  constexpr int kGroups = kNumGroups<F>;
  float largest_step = 0.0f, largest_down = 0.0f;
  for (int l = 0; l < kGroups; ++l) {
    if (std::fabs(block.steps[l]) > std::fabs(largest_step)) largest_step = block.steps[l];
    if (block.down[l] > largest_down) largest_down = block.down[l];
  }
  PerGroup<F> costs;
  NIBBLE_EACH_LANE (l, kGroups) {
    // With mins the offset keeps the group's middle where it was.
    const float level = block.levels[l], w = block.tile.importance_sum[l];
    costs[l] = F::kHasOffset ? block.squares[l] - w * level * level : block.squares[l];
  }
  SharedUnit d = find_shared_unit<F>(block.steps, costs, largest_step, F::kTMax);
  if constexpr (!F::kHasOffset) {
    const SharedUnit other = find_shared_unit<F>(block.steps, costs, largest_step, F::kTMin);
    return {other.loss < d.loss ? other.unit : d.unit, 0.0f};
  } else {
    PerGroup<F> downs;
    NIBBLE_EACH_LANE (l, kGroups) {
      const float t = snap_sub_scale<F>(block.steps[l] * inverse_of(d.unit));
      downs[l] = block.down[l] + (d.unit * t - block.steps[l]) * block.levels[l];
    }
    const float* weights = block.tile.importance_sum;
    return {d.unit, find_shared_unit<F>(downs, weights, largest_down, F::kTMax).unit};
  }
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
    GroupScales<F> grids;
    PerGroup<F> errors;
    nearest_integers<F>(block, shared, static_cast<float>((choice + 1) % 3 - 1), choice >= 3,
                        &integers);
    stored_grids<F>(shared, integers, &grids);
    group_errors<F>(block.tile, grids, errors);
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
NIBBLE_HD SharedScales refit_shared_scales(const GroupTile<F>& tile,
                                           const GroupIntegers<F>& integers,
                                           const GroupSums<F>& sums, const SharedScales& shared) {
  float aa = 0.0f, ab = 0.0f, bb = 0.0f, ar = 0.0f, br = 0.0f;
  NIBBLE_EACH_LANE (l, kNumGroups<F>) {
    const float t = integers.t[l], u = integers.u[l];
    aa += t * t * sums.qq[l];
    ab -= t * u * sums.q[l];
    bb += u * u * tile.importance_sum[l];
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

/// Stores the scales of least error, from `shared` on, where it is below `least`; returns the lower
/// of both.
template <class F>
NIBBLE_HD float fit_integers(const SearchGroups<F>& block, SharedScales shared, float least,
                             float* scales) {
  constexpr int kRounds = 2, kFirst = 1 + F::kHasOffset;
  for (int round = 0; round < kRounds; ++round) {
    GroupIntegers<F> integers;
    GroupScales<F> grids;
    GroupSums<F> sums;
    choose_integers<F>(block, shared, &integers);
    stored_grids<F>(shared, integers, &grids);
    residual_sums<GroupOf<F>>(block.tile, grids, &sums);
    float error = 0.0f;
    NIBBLE_EACH_LANE (l, kNumGroups<F>) error += sums.rr[l];
    if (error < least) {
      least = error;
      scales[0] = shared.d;
      if (F::kHasOffset) scales[1] = shared.dmin;
      NIBBLE_EACH_LANE (l, kNumGroups<F>) {
        scales[kFirst + l] = integers.t[l];
        if (F::kHasOffset) scales[kFirst + kNumGroups<F> + l] = integers.u[l];
      }
    }
    shared = refit_shared_scales<F>(block.tile, integers, sums, shared);
  }
  return least;
}

/// Scales of least weighted squared error found; false where the block is nearly 0. importance: at
/// most 1.
template <class F>
NIBBLE_HD bool search_sub_scales(const float* weights, const float* importance, float* scales) {
  SearchGroups<F> block;
  load_groups<F>(weights, importance, &block.tile);
  find_group_steps<F>(&block);
  SharedScales shared = find_shared_scales<F>(block);
  if (shared.d == 0.0f && shared.dmin == 0.0f) return false;
  float least = std::numeric_limits<float>::infinity();
  least = fit_integers<F>(block, shared, least, scales);
  if (find_exact_scales<F>(&block, &shared)) least = fit_integers<F>(block, shared, least, scales);
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
  constexpr int kLanes = kNumGroups<F>;
  float lanes[F::kBlockSize];
  PerGroup<F> mins, maxs, steps;
  to_lanes<F::kGroupSize, kLanes>(weights, lanes);
  lane_ranges<F::kGroupSize, kLanes>(lanes, mins, maxs);
  if constexpr (F::kHasOffset) {
    NIBBLE_EACH_LANE (l, kLanes) mins[l] = mins[l] < 0.0f ? -mins[l] : 0.0f;
    float* u = scales + 2 + kLanes;
    scales[1] = range_unit<F>(mins, u);
    const float dmin = snap_step(scales[1]);
    NIBBLE_EACH_LANE (l, kLanes) {
      const float range = maxs[l] + dmin * u[l];
      steps[l] = (range > 0.0f ? range : 0.0f) / F::kQMax;
    }
  } else {
    NIBBLE_EACH_LANE (l, kLanes) steps[l] = step_of_range<F>(mins[l], maxs[l]);
  }
  scales[0] = range_unit<F>(steps, scales + 1 + F::kHasOffset);
}

}  // namespace nibble
