// The groups of a block with sub-scales (quant/format/sub_scales.h) beside each other in lanes: for
// each the step, and offset, of least weighted squared error, whatever the others need.
#pragma once

#include <limits>
#include <type_traits>

#include "quant/format/search.h"
#include "quant/format/sub_scales.h"

namespace nibble {

/// A group of F's as a block of its own.
template <class F>
struct GroupOf {
  using Levels = std::conditional_t<kIsEven<F>, EvenLevels<GroupOf<F>>, typename F::Levels>;
  static constexpr int kBlockSize = F::kGroupSize;
  static constexpr int kQMin = F::kQMin;
  static constexpr int kQMax = F::kQMax;
  static constexpr bool kHasOffset = F::kHasOffset;
};

/// Of the groups of a block: a number for each, weights in lanes, steps and offsets, sums.
template <class F>
using PerGroup = float[kNumGroups<F>];
template <class F>
using GroupTile = SearchTile<GroupOf<F>, kNumGroups<F>>;
template <class F>
using GroupScales = LaneScales<kNumGroups<F>>;
template <class F>
using GroupSums = TileSums<kNumGroups<F>>;

/// d and dmin, as a block stores them.
struct SharedScales {
  float d, dmin;
};

/// A block, and what suits each of its groups best: step and minus-offset, and for these the mean
/// of the q's and the weighted sum of their squares; 0 for a group that is nearly 0.
template <class F>
struct SearchGroups {
  GroupTile<F> tile;
  PerGroup<F> steps, down, levels, squares;
};

template <class F>
NIBBLE_HD void load_groups(const float* weights, const float* importance, GroupTile<F>* tile) {
  constexpr int kLanes = kNumGroups<F>, kSize = F::kGroupSize;
  to_lanes<kSize, kLanes>(weights, tile->weights);
  to_lanes<kSize, kLanes>(importance, tile->importance);
  sum_up_lanes(tile);
}

/// Moves the grids to the least-squares fit for the codes that they gave, offsets at most 0 (u is
/// not negative).
template <class F>
NIBBLE_HD void refit_groups(const GroupTile<F>& tile, const GroupSums<F>& sums,
                            GroupScales<F>* grids) {
  NIBBLE_EACH_LANE (l, kNumGroups<F>) {
    const float r = sums.r[l], rq = sums.rq[l], q = sums.q[l], qq = sums.qq[l];
    const float w = tile.importance_sum[l], step = grids->step[l], offset = grids->offset[l];
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
    grids->step[l] = moves ? step + by_step : step;
    grids->offset[l] = moves ? offset + by_offset : offset;
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
NIBBLE_HD void starting_grids(const GroupTile<F>& tile, int start, GroupScales<F>* grids) {
  constexpr float kLo = F::kQMin, kHi = F::kQMax;
  const int cuts = F::kHasOffset ? (start + 2) / 3 : start / 2;
  const float share = kDeepest<F> / kCuts<F> * static_cast<float>(cuts);
  const float part = 0.5f * static_cast<float>((start + 2) % 3);
  NIBBLE_EACH_LANE (l, kNumGroups<F>) {
    if constexpr (F::kHasOffset) {
      const float min = tile.min[l] < 0.0f ? tile.min[l] : 0.0f;
      const float range = tile.max[l] - min, cut = range * share;
      const float offset = min + cut * part;
      grids->step[l] = (range - cut) / kHi;
      grids->offset[l] = offset < 0.0f ? offset : 0.0f;
    } else {
      const float top = start % 2 ? -tile.min[l] : tile.max[l];
      const float bottom = start % 2 ? tile.max[l] : -tile.min[l];
      const float up = (top > 0.0f ? top : 0.0f) / kHi;
      const float down = (bottom > 0.0f ? bottom : 0.0f) / -kLo;
      const float full = up > down ? up : down;
      grids->step[l] = (start % 2 ? -full : full) * (1.0f - share);
      grids->offset[l] = 0.0f;
    }
  }
}

/// The least-squares fit for the codes of the start that leaves the least error, as choose_start()
/// finds it for blocks; but offsets are at most 0, and with mins steps are positive.
template <class F>
NIBBLE_HD void choose_group_starts(const GroupTile<F>& tile, GroupScales<F>* chosen) {
  PerGroup<F> most;
  NIBBLE_EACH_LANE (l, kNumGroups<F>) most[l] = -std::numeric_limits<float>::infinity();
  starting_grids<F>(tile, 0, chosen);
  for (int start = 0; start < kStarts<F>; ++start) {
    GroupScales<F> grids;
    LaneCorrelations<kNumGroups<F>> sums;
    starting_grids<F>(tile, start, &grids);
    correlate<GroupOf<F>>(tile, grids, &sums);
    NIBBLE_EACH_LANE (l, kNumGroups<F>) {
      const float pq = sums.pq[l], q = sums.q[l], qq = sums.qq[l];
      const float w = tile.importance_sum[l], mean = tile.mean[l], mean_level = q / w;
      const float variance = F::kHasOffset ? qq - mean_level * q : qq;
      float step = pq / variance, gain = step * pq, offset = 0.0f;
      if (F::kHasOffset) {
        const float xq = pq + mean * q, through_zero = xq / qq;
        const bool above = mean - step * mean_level > 0.0f;
        gain = above ? through_zero * xq - w * mean * mean : gain;
        step = above ? through_zero : step;
        offset = above ? 0.0f : mean - step * mean_level;
      }
      const bool better =
          (variance > 0.0f) & (gain > most[l]) & (F::kHasOffset ? step > 0.0f : true);
      most[l] = better ? gain : most[l];
      chosen->step[l] = better ? step : chosen->step[l];
      chosen->offset[l] = better ? offset : chosen->offset[l];
    }
  }
}

/// Weights below make steps that are no normal numbers any more, or nearly so.
constexpr float kLeastGroup = 1e-30f;

/// Fills in steps, down, levels and squares: the start whose fit is best, refitted on.
template <class F>
NIBBLE_HD void find_group_steps(SearchGroups<F>* block) {
  constexpr int kLanes = kNumGroups<F>, kRefits = 3;
  const GroupTile<F>& tile = block->tile;
  GroupScales<F> from;
  PerGroup<F> least;
  choose_group_starts<F>(tile, &from);
  NIBBLE_EACH_LANE (l, kLanes) {
    least[l] = std::numeric_limits<float>::infinity();
    block->steps[l] = block->down[l] = block->levels[l] = block->squares[l] = 0.0f;
  }
  for (int round = 0; round < kRefits; ++round) {
    GroupSums<F> sums;
    residual_sums<GroupOf<F>>(tile, from, &sums);
    NIBBLE_EACH_LANE (l, kLanes) {
      const bool nonzero = tile.max[l] >= kLeastGroup || -tile.min[l] >= kLeastGroup;
      const bool better = nonzero && sums.rr[l] < least[l];
      const float mean = sums.q[l] / tile.importance_sum[l];
      const float level = tile.importance_sum[l] > 0.0f ? mean : 0.0f;
      least[l] = better ? sums.rr[l] : least[l];
      block->steps[l] = better ? from.step[l] : block->steps[l];
      block->down[l] = better ? 0.0f - from.offset[l] : block->down[l];  // never -0
      block->levels[l] = better ? level : block->levels[l];
      block->squares[l] = better ? sums.qq[l] : block->squares[l];
    }
    refit_groups<F>(tile, sums, &from);
  }
}

}  // namespace nibble
