// Post-training quantization of a row of weights by each EncodeMethod, for formats with one grid
// per block.
#pragma once

#include "quant/format/ggml_choice.h"
#include "quant/format/registry.h"
#include "quant/format/search.h"
#include "quant/format/uniform.h"

namespace nibble {

/// Weighted squared error of a block, in double: blocks are chosen by it, and a sum over a row must
/// not hide a tie.
template <class F>
NIBBLE_HOST double block_error(const float* weights, const float* importance,
                               const typename F::Block& block) {
  float decoded[F::kBlockSize];
  F::decode(block, decoded);
  double error = 0.0;
  for (int i = 0; i < F::kBlockSize; ++i) {
    const double difference = static_cast<double>(decoded[i]) - weights[i];
    error += importance[i] * difference * difference;
  }
  return error;
}

/// From here on, rounding to float16 gives infinity.
constexpr float kOverflow = 65520.0f;

/// The largest float16 that is not above x.
NIBBLE_HOST float float16_at_most(float x) {
  const float snapped = snap_offset(x);
  if (snapped <= x) return snapped;
  const uint16_t bits = float_to_float16(snapped);
  if (snapped == 0.0f) return -kMinStep;
  return float16_to_float(static_cast<uint16_t>(snapped > 0.0f ? bits - 1 : bits + 1));
}

/// The scales that put every weight within half a step of its value, without clamping.
template <class F>
NIBBLE_HOST void range_scales(const float* weights, float* scales) {
  float min = weights[0], max = weights[0];
  for (int i = 1; i < F::kBlockSize; ++i) {
    min = weights[i] < min ? weights[i] : min;
    max = weights[i] > max ? weights[i] : max;
  }
  if constexpr (F::kHasOffset) {
    scales[1] = std::fabs(min) < kOverflow ? float16_at_most(min) : min;
    const float range = max - scales[1];
    scales[0] = range > 0.0f ? range / static_cast<float>(F::kQMax) : 0.0f;
  } else {
    // With d > 0, the largest weight needs d >= max / q_max and the smallest d >= min / q_min; d <
    // 0 swaps them.
    constexpr float kLo = F::kQMin, kHi = F::kQMax;
    const float up = max > 0.0f ? max : 0.0f, down = min < 0.0f ? -min : 0.0f;
    const float positive = std::fmax(up / kHi, down / -kLo);
    const float negative = std::fmax(down / kHi, up / -kLo);
    scales[0] = positive <= negative ? positive : -negative;
  }
}

template <class F>
NIBBLE_HOST void encode_by_range(const float* weights, typename F::Block& block) {
  float scales[F::kNumScales], snapped[F::kNumScales];
  range_scales<F>(weights, scales);
  F::snap(scales, snapped);
  F::encode_with(weights, snapped, block);
  // An overflow must reach the block, where encode_tensor sees it.
  for (float scale : scales) {
    if (std::fabs(scale) >= kOverflow) F::set_scales(block, scales);
  }
}

/// Replaces ggml's choice in `block` where search or range has less error. importance: at most 1.
template <class F>
NIBBLE_HOST void improve_by_search(const float* weights, const float* importance,
                                   typename F::Block& block) {
  float scales[F::kNumScales];
  F::scales_of(block, scales);
  for (float scale : scales) {
    if (!std::isfinite(scale)) return;  // encode_tensor refuses it
  }
  const double ggml_error = block_error<F>(weights, importance, block);
  if (ggml_error == 0.0) return;
  SearchBlock search = {weights, importance, 0.0f, weights[0], weights[0]};
  for (int i = 0; i < F::kBlockSize; ++i) {
    search.importance_sum += importance[i];
    search.min = weights[i] < search.min ? weights[i] : search.min;
    search.max = weights[i] > search.max ? weights[i] : search.max;
  }
  typename F::Block searched, ranged;
  F::encode_with(weights, search_scales<F>(search).scales, searched);
  encode_by_range<F>(weights, ranged);
  const double error = block_error<F>(weights, importance, searched);
  const double range_error = block_error<F>(weights, importance, ranged);
  if (std::fmin(error, range_error) < ggml_error) block = error <= range_error ? searched : ranged;
}

/// Scales importance to at most 1; all ones where there is none or it is all zero, so that such a
/// block is still encoded well. Returns whether any was given.
template <int kBlockSize>
NIBBLE_HOST bool relative_importance(const float* importance, float* relative) {
  float largest = 0.0f;
  for (int i = 0; importance && i < kBlockSize; ++i) largest = std::fmax(largest, importance[i]);
  for (int i = 0; i < kBlockSize; ++i)
    relative[i] = largest > 0.0f ? importance[i] / largest : 1.0f;
  return largest > 0.0f;
}

/// sigma2: mean_square() of the row.
template <class F>
NIBBLE_HOST void encode_by_ggml(const float* weights, const float* importance, float sigma2,
                                typename F::Block& block) {
  float weighed[F::kBlockSize];
  if (importance) weigh<F::kBlockSize>(weights, importance, sigma2, weighed);
  F::encode_ggml(weights, importance ? weighed : nullptr, block);
}

/// weights, importance (or nullptr): `length` numbers.
template <class F>
NIBBLE_HOST void encode_row(const float* weights, const float* importance, std::byte* blocks,
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
