// EncodeMethod::kSearch for formats with one grid per block, kLanes blocks beside each other:
// scales of least weighted squared error. First scales over a range of clippings, each judged by
// the error that a least-squares fit for its codes would leave; the best of them rounded and
// refitted a few times, then its float16 neighbours. With very many levels, simply more steps.
// Blocks that lie on a grid already get its scales (exact_grid.h). The caller compares in double
// with ggml's choice and the range's.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "quant/format/exact_grid.h"
#include "quant/format/lanes.h"
#include "quant/format/uniform.h"

namespace nibble {

/// Weights that a lane takes in one go, in a loop before which NIBBLE_UNROLL stands, so that its
/// sums stay in registers.
constexpr int kRun = 8;

/// Blocks in lanes (quant/format/lanes.h). importance: at most 1. products: importance times what
/// the weight is above the weighted mean, with an offset, or above 0. source: each block's weights,
/// one after the other.
template <class F, int kLanes>
struct SearchTile {
  alignas(64) float weights[F::kBlockSize * kLanes];
  alignas(64) float importance[F::kBlockSize * kLanes];
  alignas(64) float products[F::kBlockSize * kLanes];
  const float* source[kLanes];
  float importance_sum[kLanes], mean[kLanes], min[kLanes], max[kLanes];
};

/// offset: 0 for formats without.
template <int kLanes>
struct LaneScales {
  float step[kLanes], offset[kLanes];
};

/// Weighted sums over each block of r = w - value, and of the q's, for one grid.
template <int kLanes>
struct TileSums {
  float rr[kLanes], r[kLanes], rq[kLanes], q[kLanes], qq[kLanes];
};

/// Fills in what the weights and importance of all lanes give.
template <class F, int kLanes>
NIBBLE_HD void sum_up_lanes(SearchTile<F, kLanes>* tile) {
  NIBBLE_EACH_LANE (lane, kLanes) {
    tile->importance_sum[lane] = tile->mean[lane] = 0.0f;
    tile->min[lane] = tile->max[lane] = tile->weights[lane];
  }
  for (int first = 0; first < F::kBlockSize; first += kRun) {
    NIBBLE_EACH_LANE (lane, kLanes) {
      float sum = tile->importance_sum[lane], weighted_sum = tile->mean[lane];
      float min = tile->min[lane], max = tile->max[lane];
      NIBBLE_UNROLL
      for (int k = 0; k < kRun; ++k) {
        const float weight = tile->weights[(first + k) * kLanes + lane];
        const float importance = tile->importance[(first + k) * kLanes + lane];
        sum += importance;
        weighted_sum += importance * weight;
        min = weight < min ? weight : min;
        max = weight > max ? weight : max;
      }
      tile->importance_sum[lane] = sum;
      tile->mean[lane] = weighted_sum;
      tile->min[lane] = min;
      tile->max[lane] = max;
    }
  }
  NIBBLE_EACH_LANE (lane, kLanes) {
    const float mean = tile->mean[lane] / tile->importance_sum[lane];
    tile->mean[lane] = F::kHasOffset && tile->importance_sum[lane] > 0.0f ? mean : 0.0f;
  }
  for (int first = 0; first < F::kBlockSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (lane, kLanes)
      tile->products[first + lane] =
          tile->importance[first + lane] * (tile->weights[first + lane] - tile->mean[lane]);
  }
}

/// weights, importance: of `count` blocks; idle lanes get the last one again.
template <class F, int kLanes>
NIBBLE_HD void set_lanes(const float* weights, const float* importance, int count,
                         SearchTile<F, kLanes>* tile) {
  for (int lane = 0; lane < kLanes; ++lane)
    tile->source[lane] = weights + (lane < count ? lane : count - 1) * F::kBlockSize;
  if (count == kLanes) {
    to_lanes<F::kBlockSize, kLanes>(weights, tile->weights);
    to_lanes<F::kBlockSize, kLanes>(importance, tile->importance);
  } else {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float* own_importance = importance + (tile->source[lane] - weights);
      for (int i = 0; i < F::kBlockSize; ++i) {
        tile->weights[i * kLanes + lane] = tile->source[lane][i];
        tile->importance[i * kLanes + lane] = own_importance[i];
      }
    }
  }
  sum_up_lanes(tile);
}

/// Whether the levels are all integers from kQMin to kQMax.
template <class F>
constexpr bool kIsEven = std::is_same_v<typename F::Levels, EvenLevels<F>>;

/// The level nearest to x steps, as level_of() has it, of an x that is no NaN. Even levels are
/// rounded first and clamped as integers: the fewest instructions.
template <class F>
NIBBLE_HD float nearest_level(float x) {
  if constexpr (!kIsEven<F>) return F::Levels::nearest(x);
  constexpr int32_t kBias = static_cast<int32_t>(kRoundingBiasBits);
  int32_t bits = static_cast<int32_t>(bits_of(x + kRoundingBias));
  bits = bits < kBias + F::kQMin ? kBias + F::kQMin : bits;
  bits = bits > kBias + F::kQMax ? kBias + F::kQMax : bits;
  return float_of(static_cast<uint32_t>(bits)) - kRoundingBias;
}

template <class F, int kLanes>
NIBBLE_HD void residual_sums(const SearchTile<F, kLanes>& tile, const LaneScales<kLanes>& scales,
                             TileSums<kLanes>* sums) {
  float inverse[kLanes];
  NIBBLE_EACH_LANE (lane, kLanes) {
    inverse[lane] = inverse_of(scales.step[lane]);
    sums->rr[lane] = sums->r[lane] = sums->rq[lane] = sums->q[lane] = sums->qq[lane] = 0.0f;
  }
  for (int first = 0; first < F::kBlockSize; first += kRun) {
    NIBBLE_EACH_LANE (lane, kLanes) {
      const Grid grid = {scales.step[lane], inverse[lane], scales.offset[lane]};
      float rr = sums->rr[lane], r = sums->r[lane], rq = sums->rq[lane];
      float q = sums->q[lane], qq = sums->qq[lane];
      NIBBLE_UNROLL
      for (int k = 0; k < kRun; ++k) {
        const float weight = tile.weights[(first + k) * kLanes + lane];
        const float importance = tile.importance[(first + k) * kLanes + lane];
        const float level =
            nearest_level<F>((F::kHasOffset ? weight - grid.offset : weight) * grid.inverse);
        const float residual = weight - value_of<F>(level, grid);
        const float weighted_residual = importance * residual;
        const float weighted_level = importance * level;
        rr += weighted_residual * residual;
        rq += weighted_residual * level;
        qq += weighted_level * level;
        if (F::kHasOffset) {
          r += weighted_residual;
          q += weighted_level;
        }
      }
      sums->rr[lane] = rr;
      sums->rq[lane] = rq;
      sums->qq[lane] = qq;
      if (F::kHasOffset) {
        sums->r[lane] = r;
        sums->q[lane] = q;
      }
    }
  }
}

/// Moves a lane's scales to the least-squares fit for the codes that they gave. Both outcomes are
/// computed and one is chosen: no branch in a loop over lanes.
template <class F, int kLanes>
NIBBLE_HD void refit(const SearchTile<F, kLanes>& tile, const TileSums<kLanes>& sums, int lane,
                     LaneScales<kLanes>* scales) {
  float divisor = sums.qq[lane], step = sums.rq[lane], offset = 0.0f;
  if constexpr (F::kHasOffset) {
    const float r = sums.r[lane], q = sums.q[lane], weight = tile.importance_sum[lane];
    offset = divisor * r - q * step;
    step = weight * step - r * q;
    divisor = weight * divisor - q * q;
  }
  const float moved_step = scales->step[lane] + step / divisor;
  const float moved_offset = scales->offset[lane] + offset / divisor;
  const bool fits = divisor > 0.0f;
  scales->step[lane] = fits ? moved_step : scales->step[lane];
  scales->offset[lane] = fits ? moved_offset : scales->offset[lane];
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

/// Scales that the search starts from. A step alone: both signs, as the codes reach further on one
/// side of 0. With an offset: what is clipped is taken from the bottom, from both ends, or from the
/// top.
template <class F>
constexpr int kClippedStarts = F::kHasOffset ? 1 + 3 * (kClippings - 1)
                                             : (F::kQMin == -F::kQMax ? 1 : 2) * kClippings;

template <class F>
NIBBLE_HD void clipped_scales(int start, float min, float max, float* step, float* offset) {
  constexpr float kLo = F::kQMin, kHi = F::kQMax;
  if constexpr (F::kHasOffset) {
    const int i = (start + 2) / 3, side = (start + 2) % 3;  // all sides are the same at i = 0
    const float range = max - min;
    const float cut = range - range * clipping<F>(i);
    *step = (range - cut) / kHi;
    *offset = min + cut * (0.5f * static_cast<float>(side));
  } else {
    const bool positive = start < kClippings;
    const float top = positive ? max : -min, bottom = positive ? -min : max;
    const float up = top / kHi, down = bottom / -kLo;
    const float larger = up > down ? up : down;
    const float full = larger > 0.0f ? larger : 0.0f;
    *step = full * (positive ? clipping<F>(start) : -clipping<F>(start - kClippings));
    *offset = 0.0f;
  }
}

/// Weighted sums over each block of products * q, q and q * q.
template <int kLanes>
struct LaneCorrelations {
  float pq[kLanes], q[kLanes], qq[kLanes];
};

template <class F, int kLanes>
NIBBLE_HD void correlate(const SearchTile<F, kLanes>& tile, const LaneScales<kLanes>& scales,
                         LaneCorrelations<kLanes>* sums) {
  float inverse[kLanes], shift[kLanes];
  NIBBLE_EACH_LANE (lane, kLanes) {
    inverse[lane] = inverse_of(scales.step[lane]);
    shift[lane] = scales.offset[lane] * inverse[lane];
    sums->pq[lane] = sums->q[lane] = sums->qq[lane] = 0.0f;
  }
  for (int first = 0; first < F::kBlockSize; first += kRun) {
    NIBBLE_EACH_LANE (lane, kLanes) {
      float pq = sums->pq[lane], q = sums->q[lane], qq = sums->qq[lane];
      NIBBLE_UNROLL
      for (int k = 0; k < kRun; ++k) {
        const int i = (first + k) * kLanes + lane;
        const float x = tile.weights[i] * inverse[lane];
        const float level = nearest_level<F>(F::kHasOffset ? x - shift[lane] : x);
        const float weighted_level = tile.importance[i] * level;
        pq += tile.products[i] * level;
        qq += weighted_level * level;
        if (F::kHasOffset) q += weighted_level;
      }
      sums->pq[lane] = pq;
      sums->q[lane] = q;
      sums->qq[lane] = qq;
    }
  }
}

/// The least-squares fit for the codes of the start that leaves the least error: the sum of the
/// squares of what products hold, less pq * pq / variance.
template <class F, int kLanes>
NIBBLE_HD void choose_start(const SearchTile<F, kLanes>& tile, LaneScales<kLanes>* chosen) {
  float most[kLanes];
  NIBBLE_EACH_LANE (lane, kLanes) {
    most[lane] = -1.0f;
    chosen->step[lane] = chosen->offset[lane] = 0.0f;
  }
  for (int start = 0; start < kClippedStarts<F>; ++start) {
    LaneScales<kLanes> scales;
    NIBBLE_EACH_LANE (lane, kLanes) {
      clipped_scales<F>(start, tile.min[lane], tile.max[lane], &scales.step[lane],
                        &scales.offset[lane]);
    }
    LaneCorrelations<kLanes> sums;
    correlate<F>(tile, scales, &sums);
    NIBBLE_EACH_LANE (lane, kLanes) {
      const float pq = sums.pq[lane], mean_level = sums.q[lane] / tile.importance_sum[lane];
      const float variance =
          F::kHasOffset ? sums.qq[lane] - mean_level * sums.q[lane] : sums.qq[lane];
      const float step = pq / variance, gain = step * pq;
      const float offset = F::kHasOffset ? tile.mean[lane] - step * mean_level : 0.0f;
      const bool better = (variance > 0.0f) & (gain > most[lane]);
      most[lane] = better ? gain : most[lane];
      chosen->step[lane] = better ? step : chosen->step[lane];
      chosen->offset[lane] = better ? offset : chosen->offset[lane];
    }
  }
}

/// Whether a format has so many levels that other ones are the nearest at every other step: errors
/// of neighbouring steps hardly tell of each other then, so the more are tried, the less is found.
template <class F>
constexpr bool kIsFine = F::Levels::kCount > 128;

/// The storable step of least error, of those that clip no weight: the extreme weight lies ever
/// fewer levels from 0.
template <class F, int kLanes>
NIBBLE_HD void choose_fine_step(const SearchTile<F, kLanes>& tile, LaneScales<kLanes>* chosen) {
  constexpr int kTrials = 16;
  constexpr float kMostLevels = F::kQMax + 0.4f, kFewer = 0.7f;
  float least[kLanes];
  NIBBLE_EACH_LANE (lane, kLanes) {
    least[lane] = std::numeric_limits<float>::infinity();
    chosen->step[lane] = chosen->offset[lane] = 0.0f;
  }
  for (int trial = 0; trial < kTrials; ++trial) {
    const float levels = kMostLevels - kFewer * static_cast<float>(trial);
    float steps[kLanes], inverses[kLanes], squares[kLanes];
    NIBBLE_EACH_LANE (lane, kLanes) {
      const float max = tile.max[lane], min = tile.min[lane];
      steps[lane] = snap_step((max > -min ? max : -min) / levels);
      inverses[lane] = inverse_of(steps[lane]);
      squares[lane] = 0.0f;
    }
    for (int first = 0; first < F::kBlockSize; first += kRun) {
      NIBBLE_EACH_LANE (lane, kLanes) {
        float sum = squares[lane];
        NIBBLE_UNROLL
        for (int k = 0; k < kRun; ++k) {
          const int i = (first + k) * kLanes + lane;
          const float x = tile.weights[i] * inverses[lane];
          const float miss = x - round_to_even(x);
          sum += tile.importance[i] * miss * miss;
        }
        squares[lane] = sum;
      }
    }
    NIBBLE_EACH_LANE (lane, kLanes) {
      const float error = squares[lane] * steps[lane] * steps[lane];
      const bool better = error < least[lane];
      least[lane] = better ? error : least[lane];
      chosen->step[lane] = better ? steps[lane] : chosen->step[lane];
    }
  }
}

/// The best storable scales yet, their error, and the weighted means of the residuals and the q's.
template <int kLanes>
struct LaneBest {
  LaneScales<kLanes> scales;
  float error[kLanes], mean_residual[kLanes], mean_level[kLanes];
};

/// Keeps a lane's scales where they err less than the best yet, and moves them on to their refit.
template <class F, int kLanes>
NIBBLE_HD void keep_and_refit(const SearchTile<F, kLanes>& tile, const TileSums<kLanes>& sums,
                              int lane, LaneScales<kLanes>* scales, LaneBest<kLanes>* best) {
  const bool better = sums.rr[lane] < best->error[lane];
  const float mean_residual = sums.r[lane] / tile.importance_sum[lane];
  const float mean_level = sums.q[lane] / tile.importance_sum[lane];
  best->error[lane] = better ? sums.rr[lane] : best->error[lane];
  best->mean_residual[lane] = better ? mean_residual : best->mean_residual[lane];
  best->mean_level[lane] = better ? mean_level : best->mean_level[lane];
  best->scales.step[lane] = better ? scales->step[lane] : best->scales.step[lane];
  best->scales.offset[lane] = better ? scales->offset[lane] : best->scales.offset[lane];
  refit<F>(tile, sums, lane, scales);
}

/// The float16 next to a step: 0.61 of the way to it from a power of 2 upwards, 1.23 of that from
/// the number below the next power. Below the normal numbers it may be the step itself.
constexpr float kNextStep = 0.0006f;

/// The scales beside the best: the next step above or below, and the offset that suits its codes.
template <class F, int kLanes>
NIBBLE_HD void step_beside(const LaneBest<kLanes>& best, bool above, LaneScales<kLanes>* scales) {
  const float factor = above ? 1.0f + kNextStep : 1.0f - kNextStep;
  NIBBLE_EACH_LANE (lane, kLanes) {
    const float step = best.scales.step[lane] * factor;
    const float move =
        best.mean_residual[lane] - (step - best.scales.step[lane]) * best.mean_level[lane];
    scales->step[lane] = step;
    scales->offset[lane] = F::kHasOffset ? best.scales.offset[lane] + move : 0.0f;
  }
}

/// Refits `scales` and rounds them to what a block stores, then tries the steps beside the best.
template <class F, int kLanes>
NIBBLE_HD void refine(const SearchTile<F, kLanes>& tile, LaneScales<kLanes>* scales,
                      LaneBest<kLanes>* best) {
  constexpr int kRefits = kIsFine<F> ? 2 : 3, kNeighbours = 2;
  NIBBLE_EACH_LANE (lane, kLanes) {
    best->error[lane] = std::numeric_limits<float>::infinity();
    best->mean_residual[lane] = best->mean_level[lane] = 0.0f;
    best->scales.step[lane] = best->scales.offset[lane] = 0.0f;
  }
  for (int round = 0; round < kRefits + kNeighbours; ++round) {
    if (round >= kRefits) step_beside<F>(*best, round == kRefits, scales);
    NIBBLE_EACH_LANE (lane, kLanes) {
      const float at[2] = {scales->step[lane], scales->offset[lane]};
      float snapped[2] = {0.0f, 0.0f};
      F::snap(at, snapped);
      scales->step[lane] = snapped[0];
      scales->offset[lane] = snapped[1];
    }
    TileSums<kLanes> sums;
    residual_sums<F>(tile, *scales, &sums);
    NIBBLE_EACH_LANE (lane, kLanes) keep_and_refit<F>(tile, sums, lane, scales, best);
  }
}

/// The steps of grid i, from 0, of those that a block's range allows: in the range where there is
/// an offset, else in its extreme weight.
template <class F>
NIBBLE_HD float steps_of_grid(int i) {
  return static_cast<float>(kIsEven<F> ? i + 1 : F::Levels::at(i));
}
template <class F>
constexpr int kGrids = !kIsEven<F>            ? F::Levels::kCount
                       : F::kQMax > -F::kQMin ? F::kQMax
                                              : -F::kQMin;

/// How far, in steps, kProbes weights of each block are from levels of the best of these grids.
template <int kProbes, class F, int kLanes>
NIBBLE_HD void probe_grids(const SearchTile<F, kLanes>& tile, float* distance) {
  float probes[kProbes][kLanes];
  NIBBLE_EACH_LANE (lane, kLanes) {
    const float min = tile.min[lane], max = tile.max[lane];
    const float extreme = max > -min ? max : min;
    const float from = F::kHasOffset ? min : 0.0f;
    const float unit = 1.0f / (F::kHasOffset ? max - min : extreme);
    for (int probe = 0; probe < kProbes; ++probe) {
      const float weight = tile.weights[probe * (F::kBlockSize / kProbes) * kLanes + lane];
      probes[probe][lane] = (weight - from) * unit;
    }
    distance[lane] = 1.0f;
  }
  for (int i = 0; i < kGrids<F>; ++i) {
    const float steps = steps_of_grid<F>(i);
    NIBBLE_EACH_LANE (lane, kLanes) {
      float furthest = 0.0f;
      for (int probe = 0; probe < kProbes; ++probe) {
        const float x = probes[probe][lane] * steps;
        const float away = std::fabs(x - (kIsEven<F> ? round_to_even(x) : F::Levels::nearest(x)));
        furthest = away > furthest ? away : furthest;
      }
      distance[lane] = furthest < distance[lane] ? furthest : distance[lane];
    }
  }
}

/// Scales of least weighted squared error found for each lane.
template <class F, int kLanes>
NIBBLE_HD void search_tile(const SearchTile<F, kLanes>& tile, LaneScales<kLanes>* found) {
  LaneScales<kLanes> scales;
  if constexpr (kIsFine<F>)
    choose_fine_step<F>(tile, &scales);
  else
    choose_start<F>(tile, &scales);
  LaneBest<kLanes> best;
  refine<F>(tile, &scales, &best);
  *found = best.scales;
  float distance[kLanes];
  probe_grids<2>(tile, distance);
  int near = 0;
  for (int lane = 0; lane < kLanes; ++lane) near |= distance[lane] <= kGridTolerance<F>;
  if (!near) return;
  probe_grids<8>(tile, distance);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(distance[lane] <= kGridTolerance<F>)) continue;
    float exact[2] = {found->step[lane], found->offset[lane]};
    find_exact_grid<F>(tile.source[lane], tile.min[lane], tile.max[lane], exact);
    found->step[lane] = exact[0];
    found->offset[lane] = exact[1];
  }
}

}  // namespace nibble
