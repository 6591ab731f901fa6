// What one lane (CUDA thread) of a format's kernel does, as host+device functions of (lane or
// block, pointers): format_kernels.cuh only maps thread indices to them, so CPU tests walk every
// lane. kWeights: weights that a lane takes at once; above 1, pointers to weights and outputs are
// aligned to 16 bytes. Pointers to weights are always aligned to 4 bytes, those to blocks not at
// all.
#pragma once

#include "quant/format/encode.h"
#include "quant/format/float.h"
#include "quant/format/iq.h"
#include "quant/format/kernels.h"
#include "quant/format/uniform.h"

namespace nibble {

/// Bytes that a lane loads or stores in one instruction.
constexpr int kVectorBytes = 16;
/// That many float32.
constexpr int kVectorFloats = 4;

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

/// kCount numbers in registers.
template <class T, int kCount>
struct alignas(kCount * sizeof(T) == kVectorBytes ? kVectorBytes : alignof(T)) Numbers {
  T at[kCount];
};

/// Copies kCount numbers; kVectorBytes of them in one instruction, which wants both sides in memory
/// that is aligned to them, or in registers.
template <int kCount, class T>
NIBBLE_HD void copy_numbers(const T* from, T* to) {
#if defined(__CUDA_ARCH__)
  constexpr bool kVector = kCount * sizeof(T) == kVectorBytes;
#else
  constexpr bool kVector = false;
#endif
  if constexpr (kVector) {
    using Vector = Numbers<uint32_t, kVectorFloats>;
    *reinterpret_cast<Vector*>(to) = *reinterpret_cast<const Vector*>(from);
  } else {
    for (int k = 0; k < kCount; ++k) to[k] = from[k];
  }
}

/// Lanes for `num_weights`: the last may be left with fewer, where blocks are single weights.
constexpr int64_t num_lanes(int64_t num_weights, int weights_per_lane) {
  return (num_weights + weights_per_lane - 1) / weights_per_lane;
}
/// Weights of a lane that begins at `first`.
template <class F, int kWeights>
NIBBLE_HD int lane_weights(int64_t first, int64_t num_weights) {
  if (F::kBlockSize % kWeights == 0 || num_weights - first >= kWeights) return kWeights;
  return static_cast<int>(num_weights - first);
}

/// decode: lane l takes the weights from l * kWeights on, of num_weights.
template <class F, int kWeights, class Out>
NIBBLE_HD void decode_lane(int64_t lane, int64_t num_weights, const std::byte* blocks, Out* out) {
  using Block = typename F::Block;
  constexpr int64_t kBytes = sizeof(Block);
  const int64_t first = lane * kWeights;
  const int count = lane_weights<F, kWeights>(first, num_weights);
  Numbers<Out, kWeights> values;
  if constexpr (F::kNumScales == 0) {
    for (int k = 0; k < kWeights; ++k) {
      if (k < count)
        store_as(F::value(block_at<Block>(blocks + (first + k) * kBytes)), values.at + k);
    }
  } else {
    static_assert(F::kGroupSize % kWeights == 0);
    const Block& source = block_at<Block>(blocks + first / F::kBlockSize * kBytes);
    const int within = static_cast<int>(first % F::kBlockSize);
    float scales[F::kNumScales];
    F::scales_of(source, scales);
    const Grid grid = F::grid(scales, within / F::kGroupSize);
    for (int k = 0; k < kWeights; ++k) {
      store_as(value_of<F>(static_cast<float>(F::code(source, within + k)), grid), values.at + k);
    }
  }
  if (count == kWeights) {
    copy_numbers<kWeights>(values.at, out + first);
  } else {
    for (int k = 0; k < count; ++k) out[first + k] = values.at[k];
  }
}

/// decode of a format that is only decoded: one lane a group of weights, whose code they share.
/// kWeights: those stored at once.
template <class F, int kWeights, class Out>
NIBBLE_HD void decode_group_lane(int64_t group, const std::byte* blocks, Out* out) {
  using Block = typename F::Block;
  constexpr int kGroups = F::kBlockSize / F::kGroupSize;
  constexpr int64_t kBytes = sizeof(Block);
  float values[F::kGroupSize];
  F::decode_group(block_at<Block>(blocks + group / kGroups * kBytes),
                  static_cast<int>(group % kGroups), values);
  for (int first = 0; first < F::kGroupSize; first += kWeights) {
    Numbers<Out, kWeights> numbers;
    for (int k = 0; k < kWeights; ++k) store_as(values[first + k], numbers.at + k);
    copy_numbers<kWeights>(numbers.at, out + group * F::kGroupSize + first);
  }
}

/// encode: one lane a block, as codes share bytes.
template <class F, EncodeMethod kMethod>
NIBBLE_HD void encode_lane(int64_t block, const float* weights, std::byte* blocks) {
  encode_row<F, 1>(weights + block * F::kBlockSize, nullptr,
                   blocks + block * static_cast<int64_t>(sizeof(typename F::Block)), F::kBlockSize,
                   kMethod);
}

/// encode_with: one lane a block. Export runs it, not training.
template <class F>
NIBBLE_HD void encode_with_lane(int64_t block, const float* weights, const float* snapped,
                                std::byte* blocks) {
  using Block = typename F::Block;
  F::encode_with(weights + block * F::kBlockSize, snapped + block * F::kNumScales,
                 block_at<Block>(blocks + block * static_cast<int64_t>(sizeof(Block))));
}

/// The snapped scales of a block.
template <class F>
NIBBLE_HD void snapped_scales(int64_t block, const TrainedScales& trained, float* snapped) {
  float scales[F::kNumScales];
  for (int i = 0; i < F::kNumScales; ++i) scales[i] = trained.at(block * F::kNumScales + i);
  F::snap(scales, snapped);
}

/// fake_quantize: lane l takes the weights from l * kWeights on, of num_weights. Scales are snapped
/// by each lane anew: cheaper than a second kernel.
template <class F, int kWeights>
NIBBLE_HD void fake_quantize_lane(int64_t lane, int64_t num_weights, const float* weights,
                                  const TrainedScales& scales, float* out) {
  const int64_t first = lane * kWeights;
  const int count = lane_weights<F, kWeights>(first, num_weights);
  Numbers<float, kWeights> values;
  if (count == kWeights) {
    copy_numbers<kWeights>(weights + first, values.at);
  } else {
    for (int k = 0; k < kWeights; ++k) values.at[k] = k < count ? weights[first + k] : 0.0f;
  }
  if constexpr (F::kNumScales == 0) {
    for (float& x : values.at) x = F::value(F::nearest(x));
  } else {
    static_assert(F::kGroupSize % kWeights == 0);
    float snapped[F::kNumScales];
    snapped_scales<F>(first / F::kBlockSize, scales, snapped);
    const int group = static_cast<int>(first % F::kBlockSize) / F::kGroupSize;
    const Grid grid = F::grid(snapped, group);
    for (float& x : values.at) x = value_of<F>(level_of<F>(x, grid), grid);
  }
  if (count == kWeights) {
    copy_numbers<kWeights>(values.at, out + first);
  } else {
    for (int k = 0; k < count; ++k) out[first + k] = values.at[k];
  }
}

/// follow: lane l takes the weights from l * kWeights on, in place.
template <class F, int kWeights>
NIBBLE_HD void follow_lane(int64_t lane, float* weights, const TrainedScales& from,
                           const TrainedScales& to) {
  static_assert(F::kGroupSize % kWeights == 0);
  const int64_t first = lane * kWeights, block = first / F::kBlockSize;
  const int group = static_cast<int>(first % F::kBlockSize) / F::kGroupSize;
  float before[F::kNumScales], after[F::kNumScales];
  snapped_scales<F>(block, from, before);
  snapped_scales<F>(block, to, after);
  const Follow map = follow_of<F>(F::grid(before, group), F::grid(after, group));
  Numbers<float, kWeights> values;
  copy_numbers<kWeights>(weights + first, values.at);
  for (float& x : values.at) x = map.apply(x);
  copy_numbers<kWeights>(values.at, weights + first);
}

/// fake_quantize_backward: kChunk / kWeights lanes for each group of weights. A lane takes kWeights
/// neighbours out of every kChunk weights, and its sums are those terms of fold_sums(). One lane
/// per block for formats without scales.
template <class F, int kWeights>
constexpr int kBackwardLanes = F::kNumScales == 0 ? 1 : kChunk / kWeights* kNumGroups<F>;

template <int kWeights>
struct LaneSums {
  float step[kWeights] = {};
  float offset[kWeights] = {};
};

template <class F, int kWeights>
NIBBLE_HD void backward_lane(int64_t block, int lane, const float* weights,
                             const TrainedScales& scales, const float* grad_out,
                             float* grad_weights, LaneSums<kWeights>* sums, Estimator estimator) {
  if constexpr (F::kNumScales == 0) {
    grad_weights[block] = grad_out[block];
  } else {
    constexpr int kLanesOfGroup = kChunk / kWeights;
    float snapped[F::kNumScales];
    snapped_scales<F>(block, scales, snapped);
    const int group = lane / kLanesOfGroup;
    const Grid grid = F::grid(snapped, group);
    const int64_t begin = block * F::kBlockSize + group * F::kGroupSize;
    for (int offset = 0; offset < F::kGroupSize; offset += kChunk) {
      const int64_t first = begin + offset + lane % kLanesOfGroup * kWeights;
      Numbers<float, kWeights> w, g;
      copy_numbers<kWeights>(weights + first, w.at);
      copy_numbers<kWeights>(grad_out + first, g.at);
      for (int k = 0; k < kWeights; ++k) {
        const WeightGradient part = gradient_of<F>(w.at[k], g.at[k], grid, estimator);
        g.at[k] = part.weight;
        sums->step[k] += part.step;
        if (F::kHasOffset) sums->offset[k] += part.offset;
      }
      copy_numbers<kWeights>(g.at, grad_weights + first);
    }
  }
}

/// The last part of backward, by one lane of the block: the groups' folded sums (kNumGroups each)
/// to the scales, or to their ratios where they have them.
template <class F>
NIBBLE_HD void backward_scales(int64_t block, const TrainedScales& scales, const float* step_sums,
                               const float* offset_sums, float* grad_scales) {
  float snapped[F::kNumScales];
  snapped_scales<F>(block, scales, snapped);
  float* grads = grad_scales + block * F::kNumScales;
  F::scale_gradients(snapped, step_sums, offset_sums, grads);
  if (!scales.ratios) return;
  for (int i = 0; i < F::kNumScales; ++i) grads[i] *= scales.initial[block * F::kNumScales + i];
}

}  // namespace nibble
