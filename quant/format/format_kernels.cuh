// Thread indices for kernel_bodies.h, and the launchers of one format. Every kernel is launched on
// a line of CTAs of kThreads threads; consecutive threads are consecutive lanes, so weights are
// read and written in whole lines. cmake/cuda.cmake makes a source of each row of formats.def,
// which includes this and instantiates FormatKernels for the format: they compile side by side, and
// a changed format compiles alone.
#pragma once

#include <cuda_runtime_api.h>

#include "base/error.h"
#include "quant/format/format_kernels.h"
#include "quant/format/kernel_bodies.h"

namespace nibble {

constexpr int kThreads = 256;

inline __device__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

/// One thread for kWeights weights. Reads block_bytes, writes block_size outputs a block.
template <class F, int kWeights, class Out>
__global__ void decode_kernel(const std::byte* blocks, Out* out, int64_t num_weights) {
  const int64_t lane = thread_index();
  if (lane * kWeights < num_weights) decode_lane<F, kWeights>(lane, num_weights, blocks, out);
}

/// One thread per group of weights. Moves the same bytes.
template <class F, int kWeights, class Out>
__global__ void decode_group_kernel(const std::byte* blocks, Out* out, int64_t num_groups) {
  const int64_t group = thread_index();
  if (group < num_groups) decode_group_lane<F, kWeights>(group, blocks, out);
}

/// One thread per block.
template <class F, EncodeMethod kMethod>
__global__ void encode_kernel(const float* weights, std::byte* blocks, int64_t num_blocks) {
  const int64_t block = thread_index();
  if (block < num_blocks) encode_lane<F, kMethod>(block, weights, blocks);
}

/// One thread per block.
template <class F>
__global__ void encode_with_kernel(const float* weights, const float* snapped, std::byte* blocks,
                                   int64_t num_blocks) {
  const int64_t block = thread_index();
  if (block < num_blocks) encode_with_lane<F>(block, weights, snapped, blocks);
}

/// One thread for kWeights weights. Moves 8 bytes a weight, and the scales.
template <class F, int kWeights>
__global__ void fake_quantize_kernel(const float* weights, TrainedScales scales, float* out,
                                     int64_t num_weights) {
  const int64_t lane = thread_index();
  if (lane * kWeights < num_weights)
    fake_quantize_lane<F, kWeights>(lane, num_weights, weights, scales, out);
}

/// fold_sums() over the lanes of a group: the same pairs in the same order; the group's first
/// thread gets the sum. All threads of the warp must be here.
template <int kWeights>
__device__ float fold_over_lanes(float* sums) {
#pragma unroll
  for (int width = kChunk / 2; width >= kWeights; width /= 2) {
#pragma unroll
    for (int k = 0; k < kWeights; ++k) {
      sums[k] += __shfl_down_sync(0xffffffffu, sums[k], width / kWeights, kChunk / kWeights);
    }
  }
#pragma unroll
  for (int width = kWeights / 2; width > 0; width /= 2) {
#pragma unroll
    for (int k = 0; k < width; ++k) sums[k] += sums[k + width];
  }
  return sums[0];
}

/// kBackwardLanes threads per block, whole blocks per CTA. Moves 12 bytes a weight, and the scales
/// twice.
template <class F, int kWeights>
__global__ void backward_kernel(const float* weights, TrainedScales scales, const float* grad_out,
                                float* grad_weights, float* grad_scales, int64_t num_blocks,
                                Estimator estimator) {
  constexpr int kLanes = kBackwardLanes<F, kWeights>;
  static_assert(kThreads % kLanes == 0);
  const int64_t index = thread_index();
  const int64_t block = index / kLanes;
  const int lane = static_cast<int>(index % kLanes);
  LaneSums<kWeights> sums;
  if (block < num_blocks)
    backward_lane<F, kWeights>(block, lane, weights, scales, grad_out, grad_weights, &sums,
                               estimator);
  if constexpr (F::kNumScales > 0) {
    if (!grad_scales) return;  // for all threads alike
    constexpr int kLanesOfGroup = kChunk / kWeights;
    __shared__ float step_sums[kThreads / kLanesOfGroup], offset_sums[kThreads / kLanesOfGroup];
    const float step = fold_over_lanes<kWeights>(sums.step);
    const float offset = F::kHasOffset ? fold_over_lanes<kWeights>(sums.offset) : 0.0f;
    if (threadIdx.x % kLanesOfGroup == 0) {
      step_sums[threadIdx.x / kLanesOfGroup] = step;
      offset_sums[threadIdx.x / kLanesOfGroup] = offset;
    }
    __syncthreads();
    if (block < num_blocks && lane == 0) {
      const int first = threadIdx.x / kLanesOfGroup;
      backward_scales<F>(block, scales, step_sums + first, offset_sums + first, grad_scales);
    }
  }
}

/// One thread for kWeights weights. Moves 8 bytes a weight, and the scales twice.
template <class F, int kWeights>
__global__ void follow_kernel(float* weights, TrainedScales from, TrainedScales to,
                              int64_t num_weights) {
  const int64_t lane = thread_index();
  if (lane * kWeights < num_weights) follow_lane<F, kWeights>(lane, weights, from, to);
}

/// CTAs for `count` threads. A grid's x dimension holds 2^31 - 1 of them: 2^39 threads.
inline unsigned int num_ctas(int64_t count) {
  const int64_t ctas = (count + kThreads - 1) / kThreads;
  check(ctas < (int64_t{1} << 31), count, " threads do not fit one CUDA launch");
  return static_cast<unsigned int>(ctas);
}

template <class... Pointers>
bool all_aligned(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % kVectorBytes == 0) && ...);
}

template <class F, class Out>
void launch_decode(const std::byte* blocks, void* to, int64_t num_blocks, cudaStream_t stream) {
  constexpr int kMost = kVectorBytes / sizeof(Out);
  const int64_t num_weights = num_blocks * F::kBlockSize;
  Out* out = static_cast<Out*>(to);
  if constexpr (kDecodeOnly<F>) {
    const int64_t num_groups = num_weights / F::kGroupSize;
    const unsigned int ctas = num_ctas(num_groups);
    if (all_aligned(out))
      decode_group_kernel<F, kMost><<<ctas, kThreads, 0, stream>>>(blocks, out, num_groups);
    else
      decode_group_kernel<F, 1><<<ctas, kThreads, 0, stream>>>(blocks, out, num_groups);
  } else if (all_aligned(out)) {
    const unsigned int ctas = num_ctas(num_lanes(num_weights, kMost));
    decode_kernel<F, kMost><<<ctas, kThreads, 0, stream>>>(blocks, out, num_weights);
  } else {
    decode_kernel<F, 1><<<num_ctas(num_weights), kThreads, 0, stream>>>(blocks, out, num_weights);
  }
}

template <class F, int kWeights>
void launch_fake_quantize(const float* weights, const TrainedScales& scales, float* out,
                          int64_t num_blocks, cudaStream_t stream) {
  const int64_t num_weights = num_blocks * F::kBlockSize;
  const unsigned int ctas = num_ctas(num_lanes(num_weights, kWeights));
  fake_quantize_kernel<F, kWeights>
      <<<ctas, kThreads, 0, stream>>>(weights, scales, out, num_weights);
}

template <class F, int kWeights>
void launch_backward(const float* weights, const TrainedScales& scales, const float* grad_out,
                     float* grad_weights, float* grad_scales, int64_t num_blocks,
                     Estimator estimator, cudaStream_t stream) {
  const unsigned int ctas = num_ctas(num_blocks * kBackwardLanes<F, kWeights>);
  backward_kernel<F, kWeights><<<ctas, kThreads, 0, stream>>>(
      weights, scales, grad_out, grad_weights, grad_scales, num_blocks, estimator);
}

template <class F, int kWeights>
void launch_follow(float* weights, const TrainedScales& from, const TrainedScales& to,
                   int64_t num_blocks, cudaStream_t stream) {
  const int64_t num_weights = num_blocks * F::kBlockSize;
  const unsigned int ctas = num_ctas(num_lanes(num_weights, kWeights));
  follow_kernel<F, kWeights><<<ctas, kThreads, 0, stream>>>(weights, from, to, num_weights);
}

template <class F>
void FormatKernels<F>::decode(const std::byte* blocks, void* out, DeviceFloat out_type,
                              int64_t num_blocks, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (out_type) {
    case DeviceFloat::kFloat32:
      return launch_decode<F, float>(blocks, out, num_blocks, on);
    case DeviceFloat::kFloat16:
      return launch_decode<F, Float16>(blocks, out, num_blocks, on);
    case DeviceFloat::kBfloat16:
      return launch_decode<F, Bfloat16>(blocks, out, num_blocks, on);
  }
}

template <class F>
void FormatKernels<F>::encode(const float* weights, std::byte* blocks, int64_t num_blocks,
                              EncodeMethod method, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const unsigned int ctas = num_ctas(num_blocks);
  switch (method) {
    case EncodeMethod::kGgml:
      encode_kernel<F, EncodeMethod::kGgml><<<ctas, kThreads, 0, on>>>(weights, blocks, num_blocks);
      break;
    case EncodeMethod::kRtn:
      encode_kernel<F, EncodeMethod::kRtn><<<ctas, kThreads, 0, on>>>(weights, blocks, num_blocks);
      break;
    case EncodeMethod::kSearch:
      encode_kernel<F, EncodeMethod::kSearch>
          <<<ctas, kThreads, 0, on>>>(weights, blocks, num_blocks);
      break;
  }
}

template <class F>
void FormatKernels<F>::encode_with(const float* weights, const float* snapped, std::byte* blocks,
                                   int64_t num_blocks, void* stream) {
  encode_with_kernel<F><<<num_ctas(num_blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      weights, snapped, blocks, num_blocks);
}

template <class F>
void FormatKernels<F>::fake_quantize(const float* weights, const TrainedScales& scales, float* out,
                                     int64_t num_blocks, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (all_aligned(weights, out))
    launch_fake_quantize<F, kVectorFloats>(weights, scales, out, num_blocks, on);
  else
    launch_fake_quantize<F, 1>(weights, scales, out, num_blocks, on);
}

template <class F>
void FormatKernels<F>::fake_quantize_backward(const float* weights, const TrainedScales& scales,
                                              const float* grad_out, float* grad_weights,
                                              float* grad_scales, int64_t num_blocks,
                                              Estimator estimator, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (all_aligned(weights, grad_out, grad_weights))
    launch_backward<F, kVectorFloats>(weights, scales, grad_out, grad_weights, grad_scales,
                                      num_blocks, estimator, on);
  else
    launch_backward<F, 1>(weights, scales, grad_out, grad_weights, grad_scales, num_blocks,
                          estimator, on);
}

template <class F>
void FormatKernels<F>::follow(float* weights, const TrainedScales& from, const TrainedScales& to,
                              int64_t num_blocks, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if constexpr (F::kNumScales == 0)
    fail("follow on CUDA: a format without scales");
  else if (all_aligned(weights))
    launch_follow<F, kVectorFloats>(weights, from, to, num_blocks, on);
  else
    launch_follow<F, 1>(weights, from, to, num_blocks, on);
}

}  // namespace nibble
