// Post-training quantization of a row of weights by each EncodeMethod.
#pragma once

#include <limits>

#include "quant/format/ggml_choice.h"
#include "quant/format/registry.h"
#include "quant/format/search.h"
#include "quant/format/search_byte_scales.h"
#include "quant/format/search_sub_scales.h"
#include "quant/format/uniform.h"

namespace nibble {

/// Weighted squared error of a block's values, in double: blocks are chosen by it, and a sum over a
/// row must not hide a tie.
template <int kBlockSize>
NIBBLE_HD double squared_error(const float* values, const float* weights, const float* importance) {
  constexpr int kSums = 8;  // a vector's, at most
  double sums[kSums] = {};
  for (int first = 0; first < kBlockSize; first += kSums) {
    NIBBLE_EACH_LANE (k, kSums) {
      const double difference = static_cast<double>(values[first + k]) - weights[first + k];
      sums[k] += importance[first + k] * difference * difference;
    }
  }
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

template <class F>
NIBBLE_HD double block_error(const float* weights, const float* importance,
                             const typename F::Block& block) {
  float values[F::kBlockSize];
  F::decode(block, values);
  return squared_error<F::kBlockSize>(values, weights, importance);
}

/// Of the block that encode_with() would make.
template <class F>
NIBBLE_HD double error_with(const float* weights, const float* importance, const float* snapped) {
  float values[F::kBlockSize];
  F::fake_quantize(weights, snapped, values);
  return squared_error<F::kBlockSize>(values, weights, importance);
}

/// The scales that put every weight within half a step of its value.
template <class F>
NIBBLE_HD void scales_of_range(const float* weights, float* scales) {
  if constexpr (F::kHasSubScales)
    range_sub_scales<F>(weights, scales);
  else if constexpr (F::kHasByteScales)
    range_byte_scales<F>(weights, scales);
  else
    range_scales<F>(weights, scales);
}

template <class F>
NIBBLE_HD bool overflow(const float* scales) {
  if constexpr (F::kHasByteScales) return false;
  for (int i = 0; i < F::kNumScales; ++i) {
    if (std::fabs(scales[i]) >= kOverflow) return true;
  }
  return false;
}

template <class F>
NIBBLE_HD void encode_by_range(const float* weights, typename F::Block& block) {
  float scales[F::kNumScales], snapped[F::kNumScales];
  scales_of_range<F>(weights, scales);
  F::snap(scales, snapped);
  F::encode_with(weights, snapped, block);
  // It must reach the block, where encode_tensor sees it.
  if (overflow<F>(scales)) F::set_scales(block, scales);
}

/// Snapped scales of least weighted squared error found for `count` blocks, F::kNumScales each.
/// kBlocks: the most that can be asked for.
template <class F, int kBlocks>
NIBBLE_HD void search_blocks(const float* weights, const float* importance, int count,
                             float* scales) {
  if constexpr (F::kHasByteScales) {
    for (int i = 0; i < count; ++i) {
      const int first = i * F::kBlockSize;
      search_byte_scales<F>(weights + first, importance + first, scales + i * F::kNumScales);
    }
  } else if constexpr (F::kHasSubScales) {
    for (int i = 0; i < count; ++i) {
      float* own = scales + i * F::kNumScales;
      const int first = i * F::kBlockSize;
      if (search_sub_scales<F>(weights + first, importance + first, own)) continue;
      for (int j = 0; j < F::kNumScales; ++j) own[j] = 0.0f;  // the weights are nearly 0
    }
  } else {
    SearchTile<F, kBlocks> tile;
    set_lanes(weights, importance, count, &tile);
    LaneScales<kBlocks> found;
    search_tile<F>(tile, &found);
    for (int i = 0; i < count; ++i) {
      scales[i * F::kNumScales] = found.step[i];
      if (F::kHasOffset) scales[i * F::kNumScales + 1] = found.offset[i];
    }
  }
}

template <class F>
NIBBLE_HD bool has_finite_scales(const typename F::Block& block) {
  float scales[F::kNumScales];
  F::scales_of(block, scales);
  for (float scale : scales) {
    if (!std::isfinite(scale)) return false;
  }
  return true;
}

/// Replaces ggml's choice in `block` by the searched scales or those of the range where these err
/// less.
template <class F>
NIBBLE_HD void improve_by(const float* searched, const float* weights, const float* importance,
                          typename F::Block& block) {
  float scales[F::kNumScales], ranged[F::kNumScales];
  const bool is_stored = has_finite_scales<F>(block);
  const double ggml_error = is_stored ? block_error<F>(weights, importance, block)
                                      : std::numeric_limits<double>::infinity();
  if (ggml_error == 0.0) return;
  scales_of_range<F>(weights, scales);
  // Where few weights count ggml's choice may overflow alone. Where the weights do, encode_tensor
  // refuses them.
  if (!is_stored && overflow<F>(scales)) return;
  F::snap(scales, ranged);
  const double error = error_with<F>(weights, importance, searched);
  const double range_error = error_with<F>(weights, importance, ranged);
  const bool range_is_better = range_error < error;
  if (!((range_is_better ? range_error : error) < ggml_error)) return;
  F::encode_with(weights, range_is_better ? ranged : searched, block);
}

/// Scales importance to at most 1; all ones where there is none or it is all zero, so that such a
/// block is still encoded well. Returns whether any was given.
template <int kBlockSize>
NIBBLE_HD bool relative_importance(const float* importance, float* relative) {
  float largest = 0.0f;
  for (int i = 0; importance && i < kBlockSize; ++i)
    largest = importance[i] > largest ? importance[i] : largest;
  for (int i = 0; i < kBlockSize; ++i)
    relative[i] = largest > 0.0f ? importance[i] / largest : 1.0f;
  return largest > 0.0f;
}

/// sigma2: mean_square() of the row.
template <class F>
NIBBLE_HD void encode_by_ggml(const float* weights, const float* importance, float sigma2,
                              typename F::Block& block) {
  if constexpr (F::kWeighsItself) {
    F::encode_ggml(weights, importance, block);
    return;
  }
  float weighed[F::kBlockSize];
  if (importance) weigh<F::kBlockSize>(weights, importance, sigma2, weighed);
  F::encode_ggml(weights, importance ? weighed : nullptr, block);
}

/// weights: of `count` blocks, at most kBlocks. importance: for these, or nullptr.
template <class F, int kBlocks>
NIBBLE_HD void encode_by_search(const float* weights, const float* importance, float sigma2,
                                int count, std::byte* blocks) {
  using Block = typename F::Block;
  Block* const to = &block_at<Block>(blocks);
  float relative[kBlocks * F::kBlockSize], scales[kBlocks * F::kNumScales];
  const float* judged_by[kBlocks];  // as given, where given
  for (int i = 0; i < count; ++i) {
    const int first = i * F::kBlockSize;
    const float* own = importance ? importance + first : nullptr;
    const bool counts = relative_importance<F::kBlockSize>(own, relative + first);
    judged_by[i] = counts ? own : relative + first;
    encode_by_ggml<F>(weights + first, counts ? own : nullptr, sigma2, to[i]);
    if (!own || counts || has_finite_scales<F>(to[i])) continue;
    encode_by_ggml<F>(weights + first, own, sigma2, to[i]);  // to ggml a block without weight is 0
  }
  search_blocks<F, kBlocks>(weights, relative, count, scales);
  for (int i = 0; i < count; ++i) {
    improve_by<F>(scales + i * F::kNumScales, weights + i * F::kBlockSize, judged_by[i], to[i]);
  }
}

/// Blocks whose search goes on side by side, a lane each. Formats with groups fill the lanes with
/// those of one block.
template <class F>
constexpr int kSearchBlocks = kNumGroups<F> > 1 ? 1 : 16;

/// weights, importance (or nullptr): `length` numbers. kBlocks: blocks that are searched at a time;
/// any number gives the same bits.
template <class F, int kBlocks = kSearchBlocks<F>>
NIBBLE_HD void encode_row(const float* weights, const float* importance, std::byte* blocks,
                          int64_t length, EncodeMethod method) {
  using Block = typename F::Block;
  if constexpr (F::kNumScales == 0) {
    for (int64_t i = 0; i < length; ++i) {
      block_at<Block>(blocks + i * sizeof(Block)) = F::nearest(weights[i]);
    }
  } else {
    const float sigma2 =
        importance && method != EncodeMethod::kRtn ? mean_square(weights, length) : 0.0f;
    const int64_t num_blocks = length / F::kBlockSize;
    const int64_t together = method == EncodeMethod::kSearch ? kBlocks : 1;
    for (int64_t i = 0; i < num_blocks; i += together) {
      const float* from = weights + i * F::kBlockSize;
      const float* weighed_by = importance ? importance + i * F::kBlockSize : nullptr;
      std::byte* to = blocks + i * static_cast<int64_t>(sizeof(Block));
      if (method == EncodeMethod::kRtn) {
        encode_by_range<F>(from, block_at<Block>(to));
      } else if (method == EncodeMethod::kGgml) {
        encode_by_ggml<F>(from, weighed_by, sigma2, block_at<Block>(to));
      } else {
        const int64_t left = num_blocks - i;
        encode_by_search<F, kBlocks>(from, weighed_by, sigma2,
                                     static_cast<int>(left < kBlocks ? left : kBlocks), to);
      }
    }
  }
}

}  // namespace nibble
