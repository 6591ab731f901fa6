// What one lane (CUDA thread) of a format's kernel does, as host+device functions of (block, lane,
// pointers): kernels.cu only maps thread indices to them, so CPU tests walk every pair. block:
// index of the block in the tensor. Pointers to weights are 4-byte aligned, to blocks not at all.
#pragma once

#include "quant/format/float.h"
#include "quant/format/uniform.h"

namespace nibble {

/// 16-bit outputs of decode, by bit pattern.
struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

NIBBLE_HD void store_as(float x, float* out) { *out = x; }
NIBBLE_HD void store_as(float x, Float16* out) { out->bits = float_to_float16(x); }
NIBBLE_HD void store_as(float x, Bfloat16* out) { out->bits = float_to_bfloat16(x); }

/// decode: a lane for each weight of the block.
template <class F>
constexpr int kDecodeLanes = F::kBlockSize;
template <class F, class Out>
NIBBLE_HD void decode_lane(int64_t block, int lane, const std::byte* blocks, Out* out) {
  using Block = typename F::Block;
  const Block& source = block_at<Block>(blocks + block * static_cast<int64_t>(sizeof(Block)));
  float value;
  if constexpr (F::kNumScales == 0) {
    value = F::value(source);
  } else {
    float scales[F::kNumScales];
    F::scales_of(source, scales);
    const Grid grid = F::grid(scales, lane / F::kGroupSize);
    value = value_of<F>(static_cast<float>(F::code(source, lane)), grid);
  }
  store_as(value, out + block * F::kBlockSize + lane);
}

/// encode_with: one lane a block, as codes share bytes. Export runs it, not training.
template <class F>
NIBBLE_HD void encode_with_lane(int64_t block, const float* weights, const float* snapped,
                                std::byte* blocks) {
  using Block = typename F::Block;
  F::encode_with(weights + block * F::kBlockSize, snapped + block * F::kNumScales,
                 block_at<Block>(blocks + block * static_cast<int64_t>(sizeof(Block))));
}

/// fake_quantize: a lane for each weight. Scales are snapped by each lane anew: cheaper than a
/// second kernel.
template <class F>
NIBBLE_HD void fake_quantize_lane(int64_t block, int lane, const float* weights,
                                  const float* scales, float* out) {
  const int64_t i = block * F::kBlockSize + lane;
  if constexpr (F::kNumScales == 0) {
    out[i] = F::value(F::nearest(weights[i]));
  } else {
    float snapped[F::kNumScales];
    F::snap(scales + block * F::kNumScales, snapped);
    const Grid grid = F::grid(snapped, lane / F::kGroupSize);
    out[i] = value_of<F>(level_of<F>(weights[i], grid), grid);
  }
}

/// fake_quantize_backward: kChunk lanes for each group of weights; a lane takes every kChunk-th
/// weight, and its sums are one term each of fold_sums(). One lane per block for formats without
/// scales.
template <class F>
constexpr int kBackwardLanes = F::kNumScales == 0 ? 1 : kChunk* kNumGroups<F>;

struct LaneSums {
  float step = 0.0f;
  float offset = 0.0f;
};

template <class F>
NIBBLE_HD LaneSums backward_lane(int64_t block, int lane, const float* weights, const float* scales,
                                 const float* grad_out, float* grad_weights) {
  LaneSums sums;
  if constexpr (F::kNumScales == 0) {
    grad_weights[block] = grad_out[block];
  } else {
    float snapped[F::kNumScales];
    F::snap(scales + block * F::kNumScales, snapped);
    const int group = lane / kChunk;
    const Grid grid = F::grid(snapped, group);
    const int64_t begin = block * F::kBlockSize + group * F::kGroupSize;
    for (int64_t i = begin + lane % kChunk; i < begin + F::kGroupSize; i += kChunk) {
      const WeightGradient part = gradient_of<F>(weights[i], grad_out[i], grid);
      grad_weights[i] = part.weight;
      sums.step += part.step;
      sums.offset += part.offset;
    }
  }
  return sums;
}

/// The last part of backward, by one lane of the block: the groups' folded sums (kNumGroups each)
/// to the scales.
template <class F>
NIBBLE_HD void backward_scales(int64_t block, const float* scales, const float* step_sums,
                               const float* offset_sums, float* grad_scales) {
  float snapped[F::kNumScales];
  F::snap(scales + block * F::kNumScales, snapped);
  F::scale_gradients(snapped, step_sums, offset_sums, grad_scales + block * F::kNumScales);
}

}  // namespace nibble
