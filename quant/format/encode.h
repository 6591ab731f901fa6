// Post-training quantization of a row of weights by each EncodeMethod, for formats with one grid per block.
#pragma once

#include "quant/format/ggml_choice.h"
#include "quant/format/registry.h"
#include "quant/format/uniform.h"

namespace nibble {

/// Weighted squared error of a block, in double: blocks are chosen by it, and a sum over a row must not hide a tie.
template <class F>
NIBBLE_HOST double block_error(const float* weights, const float* importance,
                               const typename F::Block& block) {
  float decoded[F::kBlockSize];
  F::decode(block, decoded);
  double error = 0.0;
  for (int i = 0; i < F::kBlockSize; ++i) {
    const double difference = static_cast<double>(decoded[i]) - weights[i];
    error += (importance ? importance[i] : 1.0) * difference * difference;
  }
  return error;
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
    scales[1] = snap_offset(min);
    const float range = max - scales[1];
    scales[0] = range > 0.0f ? range / static_cast<float>(F::kQMax) : 0.0f;
  } else {
    // With d > 0, the largest weight needs d >= max / q_max and the smallest d >= min / q_min; d < 0 swaps them.
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
  // An overflow must reach the block, where encode_tensor sees it.
  const bool overflows = std::fabs(scales[0]) >= 65520.0f;
  F::snap(scales, snapped);
  F::encode_with(weights, snapped, block);
  if (overflows) F::set_scales(block, scales);
}

template <class F>
NIBBLE_HOST void encode_by_search(const float* weights, const float* importance,
                                  typename F::Block& block) {
  typename F::Block ranged;
  encode_by_range<F>(weights, ranged);
  if (block_error<F>(weights, importance, ranged) < block_error<F>(weights, importance, block)) {
    block = ranged;
  }
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
      } else {
        float weighed[F::kBlockSize];
        if (importance) weigh<F::kBlockSize>(weights + first, importance + first, sigma2, weighed);
        F::encode_ggml(weights + first, importance ? weighed : nullptr, block);
        if (method == EncodeMethod::kSearch) {
          encode_by_search<F>(weights + first, importance ? importance + first : nullptr, block);
        }
      }
    }
  }
}

}  // namespace nibble
