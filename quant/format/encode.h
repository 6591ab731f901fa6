// Post-training quantization of a row of weights by each EncodeMethod.
#pragma once

#include "quant/format/ggml_choice.h"
#include "quant/format/registry.h"
#include "quant/format/search.h"
#include "quant/format/search_byte_scales.h"
#include "quant/format/search_sub_scales.h"
#include "quant/format/uniform.h"

namespace nibble {

/// Weighted squared error of a block, in double: blocks are chosen by it, and a sum over a row must
/// not hide a tie.
template <class F>
NIBBLE_HD double block_error(const float* weights, const float* importance,
                             const typename F::Block& block) {
  float decoded[F::kBlockSize];
  F::decode(block, decoded);
  double errors[kChunk] = {};
  for (int first = 0; first < F::kBlockSize; first += kChunk) {
    for (int k = 0; k < kChunk; ++k) {
      const double difference = static_cast<double>(decoded[first + k]) - weights[first + k];
      errors[k] += importance[first + k] * difference * difference;
    }
  }
  double error = 0.0;
  for (const double part : errors) error += part;
  return error;
}

template <class F>
NIBBLE_HD void encode_by_range(const float* weights, typename F::Block& block) {
  float scales[F::kNumScales], snapped[F::kNumScales];
  if constexpr (F::kHasSubScales)
    range_sub_scales<F>(weights, scales);
  else if constexpr (F::kHasByteScales)
    range_byte_scales<F>(weights, scales);
  else
    range_scales<F>(weights, scales);
  F::snap(scales, snapped);
  F::encode_with(weights, snapped, block);
  if constexpr (F::kHasByteScales) return;
  // An overflow must reach the block, where encode_tensor sees it.
  for (float scale : scales) {
    if (std::fabs(scale) >= kOverflow) F::set_scales(block, scales);
  }
}

/// Scales of least weighted squared error found; false where there is nothing to search.
template <class F>
NIBBLE_HD bool search_block(const float* weights, const float* importance, float* scales) {
  if constexpr (F::kHasSubScales) {
    return search_sub_scales<F>(weights, importance, scales);
  } else if constexpr (F::kHasByteScales) {
    search_byte_scales<F>(weights, importance, scales);
  } else {
    SearchBlock search = {weights, importance, 0.0f, weights[0], weights[0]};
    for (int i = 0; i < F::kBlockSize; ++i) {
      search.importance_sum += importance[i];
      search.min = weights[i] < search.min ? weights[i] : search.min;
      search.max = weights[i] > search.max ? weights[i] : search.max;
    }
    memcpy(scales, search_scales<F>(search).scales, F::kNumScales * sizeof(float));
  }
  return true;
}

/// Replaces ggml's choice in `block` where search or range has less error. importance: at most 1.
template <class F>
NIBBLE_HD void improve_by_search(const float* weights, const float* importance,
                                 typename F::Block& block) {
  float scales[F::kNumScales];
  F::scales_of(block, scales);
  for (float scale : scales) {
    if (!std::isfinite(scale)) return;  // encode_tensor refuses it
  }
  const double ggml_error = block_error<F>(weights, importance, block);
  if (ggml_error == 0.0) return;
  typename F::Block searched = {}, ranged = {};
  encode_by_range<F>(weights, ranged);
  if (search_block<F>(weights, importance, scales))
    F::encode_with(weights, scales, searched);
  else
    searched = ranged;
  const double error = block_error<F>(weights, importance, searched);
  const double range_error = block_error<F>(weights, importance, ranged);
  if (std::fmin(error, range_error) < ggml_error) block = error <= range_error ? searched : ranged;
}

/// Scales importance to at most 1; all ones where there is none or it is all zero, so that such a
/// block is still encoded well. Returns whether any was given.
template <int kBlockSize>
NIBBLE_HD bool relative_importance(const float* importance, float* relative) {
  float largest = 0.0f;
  for (int i = 0; importance && i < kBlockSize; ++i) largest = std::fmax(largest, importance[i]);
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

/// weights, importance (or nullptr): `length` numbers.
template <class F>
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
    for (int64_t first = 0; first < length; first += F::kBlockSize) {
      Block& block = block_at<Block>(blocks + first / F::kBlockSize * sizeof(Block));
      if (method == EncodeMethod::kRtn) {
        encode_by_range<F>(weights + first, block);
      } else if (method == EncodeMethod::kGgml) {
        encode_by_ggml<F>(weights + first, importance ? importance + first : nullptr, sigma2,
                          block);
      } else {
        float relative[F::kBlockSize];
        const bool given =
            relative_importance<F::kBlockSize>(importance ? importance + first : nullptr, relative);
        encode_by_ggml<F>(weights + first, given ? importance + first : nullptr, sigma2, block);
        improve_by_search<F>(weights + first, relative, block);
      }
    }
  }
}

}  // namespace nibble
