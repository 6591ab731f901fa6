// The scales of a block with sub-scales whose groups lie on grids already, such as one that was
// quantized before, be it rounded to float16 or bfloat16 since: each group's own step first; then
// the d, of those that make a group's step one of its multiples, that suits the others best; then
// dmin likewise, for offsets that lie any number of steps below a group's lowest weight.
#pragma once

#include <cmath>
#include <limits>

#include "quant/format/sub_scale_groups.h"

namespace nibble {

/// The groups' own grids: the coarsest that each lies on, an offset at most 0. spans: the largest
/// |q| there. levels and squares: as in SearchGroups.
template <class F>
struct OwnGrids {
  GroupScales<F> scales;
  PerGroup<F> spans, levels, squares;
};

/// The relative error of weights rounded to as many bits as these have, at least bfloat16's 8.
template <int kCount>
NIBBLE_HD float source_rounding(const float* weights) {
  uint32_t used = 1u << 16;
  for (int i = 0; i < kCount; ++i) used |= bits_of(weights[i]);
  const uint32_t lowest = used & (0u - used);
  return static_cast<float>(static_cast<int32_t>(lowest)) * 0x1p-24f;
}

/// How far in steps a weight on a grid may seem to be from it. Itself, the group's lowest weight
/// and its range, twice, are rounded as the source is; then there are three roundings of float32.
/// No more than what few groups keep to that lie on no grid.
template <class F>
NIBBLE_HD float own_grid_tolerance(float magnitude_steps, float rounding) {
  const float bound = magnitude_steps * (4.0f * rounding + 0x1p-21f);
  constexpr float kMost = kIsEven<F> ? 0.4f : 2.5f;
  return bound < kMost ? bound : kMost;
}

/// From x steps to the nearest level.
template <class F>
NIBBLE_HD float miss_of(float x) {
  return x - (kIsEven<F> ? round_to_even(x) : F::Levels::nearest(x));
}

/// The steps in a group's extent, its range or without mins its extreme weight (any level then,
/// negative ones too), of the grid that the weights, `above` its lowest or 0, lie on; 0 where there
/// is none. Of several that of least misses, in steps: a grid twice as fine doubles them.
template <class F>
NIBBLE_HD float steps_in_extent(const float* above, float extent, float magnitude, float rounding) {
  const float inverse = 1.0f / extent;
  float best = 0.0f, least = std::numeric_limits<float>::infinity();
  for (int grid = 0; grid < kGrids<GroupOf<F>>; ++grid) {
    const float steps = steps_of_grid<GroupOf<F>>(grid), unit = steps * inverse;
    const float tolerance = own_grid_tolerance<F>(std::fabs(magnitude * unit), rounding);
    int off = 0;
    for (int i = 0; i < F::kGroupSize; ++i)
      off |= !(std::fabs(miss_of<F>(above[i] * unit)) <= tolerance);
    if (off) continue;
    float squares = 0.0f;
    for (int i = 0; i < F::kGroupSize; ++i)
      squares += miss_of<F>(above[i] * unit) * miss_of<F>(above[i] * unit);
    best = squares < least ? steps : best;
    least = squares < least ? squares : least;
  }
  return best;
}

/// Sets lane `lane` of `own` but for levels and squares; false where the group lies on no grid.
template <class F>
NIBBLE_HD bool find_own_grid(const GroupTile<F>& tile, int lane, float rounding, OwnGrids<F>* own) {
  const float min = tile.min[lane], max = tile.max[lane];
  const float extreme = max > -min ? max : min;
  float from = F::kHasOffset ? min : 0.0f, extent = F::kHasOffset ? max - min : extreme;
  if (extent == 0.0f && extreme > 0.0f) {  // one weight above 0 is a step
    from = 0.0f;
    extent = extreme;
  }
  own->scales.step[lane] = own->spans[lane] = 0.0f;
  own->scales.offset[lane] = from;
  if (extent == 0.0f) return true;
  float above[F::kGroupSize];
  for (int i = 0; i < F::kGroupSize; ++i) above[i] = tile.weights[i * kNumGroups<F> + lane] - from;
  const float steps = steps_in_extent<F>(above, extent, extreme, rounding);
  if (steps == 0.0f) return false;
  const float step = extent / steps;
  // Whole steps, so that the offset is at most 0, but for the source's rounding.
  const float below =
      F::kHasOffset && from > 0.0f ? std::ceil(from / step * (1.0f - 4.0f * rounding)) : 0.0f;
  own->spans[lane] = below + std::fabs(steps);
  own->scales.offset[lane] = F::kHasOffset ? from - below * step : 0.0f;
  // One side of 0 may have a level more.
  own->scales.step[lane] = kIsEven<F> && !F::kHasOffset && steps > F::kQMax ? -step : step;
  return !F::kHasOffset || own->spans[lane] <= F::kQMax;
}

/// Whether all groups lie on grids. Most blocks that do not are left at the first group.
template <class F>
NIBBLE_HD bool find_own_grids(const GroupTile<F>& tile, OwnGrids<F>* own) {
  const float rounding = source_rounding<F::kBlockSize>(tile.weights);
  for (int l = 0; l < kNumGroups<F>; ++l) {
    if (!find_own_grid<F>(tile, l, rounding, own)) return false;
  }
  GroupSums<F> sums;
  residual_sums<GroupOf<F>>(tile, own->scales, &sums);
  refit_groups<F>(tile, sums, &own->scales);
  for (int l = 0; l < kNumGroups<F>; ++l) {
    own->squares[l] = sums.qq[l];
    own->levels[l] = tile.importance_sum[l] > 0.0f ? sums.q[l] / tile.importance_sum[l] : 0.0f;
  }
  return true;
}

/// How many of its own steps a group's codes may be spread by: 1 or more.
template <class F>
NIBBLE_HD int most_multiples(float span) {
  const int most = kIsEven<F> && span > 0.0f ? static_cast<int>(F::kQMax / span) : 1;
  return most > 1 ? most : 1;
}

/// d's or dmin's that are tried at a time, in lanes, and the squared errors that they leave.
constexpr int kUnitTrials = 16;
struct UnitTrials {
  float units[kUnitTrials], inverses[kUnitTrials], errors[kUnitTrials];
};

/// Those of which `value` is first, first + 1, ... times one; of 0 there is none, and the largest
/// stands there.
NIBBLE_HD void set_units(float value, int first, UnitTrials* trials) {
  NIBBLE_EACH_LANE (i, kUnitTrials) {
    trials->units[i] = snap_step(value / static_cast<float>(first + i));
    trials->inverses[i] = inverse_of(trials->units[i]);
    trials->errors[i] = 0.0f;
  }
}

/// Replaces misses by how far value is from `multiple` units, times an integer that a group stores,
/// where that is less.
template <class F>
NIBBLE_HD void least_misses(const UnitTrials& trials, float value, float multiple, float* misses) {
  const float part = 1.0f / multiple;
  NIBBLE_EACH_LANE (i, kUnitTrials) {
    const float integer = snap_sub_scale<F>(value * trials.inverses[i] * part);
    const float miss = std::fabs(value - trials.units[i] * integer * multiple);
    misses[i] = miss < misses[i] ? miss : misses[i];
  }
}

NIBBLE_HD void clear_misses(float* misses) {
  NIBBLE_EACH_LANE (i, kUnitTrials) misses[i] = std::numeric_limits<float>::infinity();
}
NIBBLE_HD void add_misses(const float* misses, float weight, UnitTrials* trials) {
  NIBBLE_EACH_LANE (i, kUnitTrials) trials->errors[i] += weight * misses[i] * misses[i];
}
NIBBLE_HD void keep_best_unit(const UnitTrials& trials, float* best, float* least) {
  for (int i = 0; i < kUnitTrials; ++i) {
    *best = trials.errors[i] < *least ? trials.units[i] : *best;
    *least = trials.errors[i] < *least ? trials.errors[i] : *least;
  }
}

/// The d of which one group's own step is a multiple, and the others' most nearly: that of the
/// largest step of those that only their own grids fit.
template <class F>
NIBBLE_HD float find_exact_d(const OwnGrids<F>& own) {
  int pivot = 0;
  float largest = 0.0f;
  for (int l = 0; l < kNumGroups<F>; ++l) {
    // 2^60: before any other.
    const float sure = most_multiples<F>(own.spans[l]) == 1 ? 0x1p60f : 1.0f;
    const float size = std::fabs(own.scales.step[l]) * sure;
    pivot = size > largest ? l : pivot;
    largest = size > largest ? size : largest;
  }
  float best = 0.0f, least = std::numeric_limits<float>::infinity();
  for (int t = F::kTMin; t <= F::kTMax; t += kUnitTrials) {
    UnitTrials trials;
    set_units(own.scales.step[pivot], t, &trials);
    for (int l = 0; l < kNumGroups<F>; ++l) {
      float misses[kUnitTrials];
      clear_misses(misses);
      for (int i = 1; i <= most_multiples<F>(own.spans[l]); ++i)
        least_misses<F>(trials, own.scales.step[l], static_cast<float>(i), misses);
      add_misses(misses, own.squares[l], &trials);
    }
    keep_best_unit(trials, &best, &least);
  }
  return best;
}

/// What a group's minus-offset may be: down + i * step, i = 0 ... room.
template <class F>
struct OffsetChoices {
  PerGroup<F> down, steps, room;
};

/// The dmin of which one group's offset is a multiple, and the others' most nearly: the group with
/// the fewest choices, of those whose offset is not near 0. Where it has more than kTried the
/// source is coarser than the format, and the first choice is as good as any.
template <class F>
NIBBLE_HD float find_exact_dmin(const GroupTile<F>& tile, const OffsetChoices<F>& choices) {
  constexpr float kTried = 3.0f, kLeastShare = 0.2f;
  float largest = 0.0f;
  for (int l = 0; l < kNumGroups<F>; ++l)
    largest = choices.down[l] > largest ? choices.down[l] : largest;
  int pivot = -1;
  for (int l = 0; l < kNumGroups<F>; ++l) {
    if (!(choices.down[l] > kLeastShare * largest)) continue;
    if (pivot < 0 || choices.room[l] < choices.room[pivot]) pivot = l;
  }
  if (pivot < 0) return 0.0f;
  const float tried = choices.room[pivot] <= kTried ? choices.room[pivot] : 0.0f;
  float best = 0.0f, least = std::numeric_limits<float>::infinity();
  for (float choice = 0.0f; choice <= tried; choice += 1.0f) {
    for (int u = 0; u <= F::kTMax; u += kUnitTrials) {
      UnitTrials trials;
      set_units(choices.down[pivot] + choice * choices.steps[pivot], u, &trials);
      for (int l = 0; l < kNumGroups<F>; ++l) {
        float misses[kUnitTrials];
        clear_misses(misses);
        for (float i = 0.0f; i <= choices.room[l]; i += 1.0f)
          least_misses<F>(trials, choices.down[l] + i * choices.steps[l], 1.0f, misses);
        add_misses(misses, tile.importance_sum[l], &trials);
      }
      keep_best_unit(trials, &best, &least);
    }
  }
  return best;
}

/// The number, 1 or more, of d times an integer that most nearly is a group's own step.
template <class F>
NIBBLE_HD float multiple_of(float step, float span, float d) {
  float best = 1.0f, least = std::numeric_limits<float>::infinity();
  for (int i = 1; i <= most_multiples<F>(span); ++i) {
    const auto multiple = static_cast<float>(i);
    const float t = snap_sub_scale<F>(step * inverse_of(d) / multiple);
    const float miss = std::fabs(step - d * t * multiple);
    best = miss < least ? multiple : best;
    least = miss < least ? miss : least;
  }
  return best;
}

/// The choice that is nearest to a multiple of dmin.
template <class F>
NIBBLE_HD float nearest_choice(const OffsetChoices<F>& choices, int group, float dmin) {
  float best = 0.0f, least = std::numeric_limits<float>::infinity();
  for (float i = 0.0f; i <= choices.room[group]; i += 1.0f) {
    const float down = choices.down[group] + i * choices.steps[group];
    const float miss = std::fabs(down - dmin * snap_sub_scale<F>(down * inverse_of(dmin)));
    best = miss < least ? i : best;
    least = miss < least ? miss : least;
  }
  return best;
}

/// Where each group lies on a grid of its own: replaces what suits the groups best by what of these
/// grids d and dmin suit, and returns true.
template <class F>
NIBBLE_HD bool find_exact_scales(SearchGroups<F>* block, SharedScales* shared) {
  OwnGrids<F> own;
  if (!find_own_grids<F>(block->tile, &own)) return false;
  shared->d = find_exact_d<F>(own);
  shared->dmin = 0.0f;
  OffsetChoices<F> choices;
  for (int l = 0; l < kNumGroups<F>; ++l) {
    const float own_step = own.scales.step[l];
    const float multiple = multiple_of<F>(own_step, own.spans[l], shared->d);
    const float t = snap_sub_scale<F>(own_step * inverse_of(shared->d) / multiple);
    const float change = multiple * (shared->d * t) - own_step;
    // The group's middle stays where it was.
    choices.down[l] = change * own.levels[l] - own.scales.offset[l];
    choices.steps[l] = shared->d * t;
    choices.room[l] = t == 0.0f ? 0.0f : F::kQMax - multiple * own.spans[l];
    block->steps[l] = own_step / multiple;
    block->levels[l] = multiple * own.levels[l];
    block->down[l] = 0.0f;
  }
  if constexpr (F::kHasOffset) {
    shared->dmin = find_exact_dmin<F>(block->tile, choices);
    for (int l = 0; l < kNumGroups<F>; ++l) {
      const float i = nearest_choice<F>(choices, l, shared->dmin);
      block->levels[l] += i;
      block->down[l] = i * block->steps[l] - own.scales.offset[l];
    }
  }
  return true;
}

}  // namespace nibble
