// Thread indices for kernel_bodies.h. Every kernel is launched on a line of CTAs of kThreads
// threads; consecutive threads are consecutive lanes, so weights are read and written in whole
// lines.
#include <cuda_runtime_api.h>

#include <string_view>

#include "base/error.h"
#include "quant/format/kernel_bodies.h"
#include "quant/format/kernels.h"

#define NIBBLE_FORMAT(F)
#include "quant/format/formats.def"
#undef NIBBLE_FORMAT

namespace nibble {
namespace {

constexpr int kThreads = 256;

__device__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

/// One thread per weight. Reads block_bytes, writes block_size outputs a block.
template <class F, class Out>
__global__ void decode_kernel(const std::byte* blocks, Out* out, int64_t num_blocks) {
  const int64_t index = thread_index();
  const int64_t block = index / kDecodeLanes<F>;
  if (block < num_blocks) {
    decode_lane<F>(block, static_cast<int>(index % kDecodeLanes<F>), blocks, out);
  }
}

/// One thread per block.
template <class F>
__global__ void encode_with_kernel(const float* weights, const float* snapped, std::byte* blocks,
                                   int64_t num_blocks) {
  const int64_t block = thread_index();
  if (block < num_blocks) encode_with_lane<F>(block, weights, snapped, blocks);
}

/// One thread per weight. Moves 8 bytes a weight.
template <class F>
__global__ void fake_quantize_kernel(const float* weights, const float* scales, float* out,
                                     int64_t num_blocks) {
  const int64_t index = thread_index();
  const int64_t block = index / F::kBlockSize;
  if (block < num_blocks) {
    fake_quantize_lane<F>(block, static_cast<int>(index % F::kBlockSize), weights, scales, out);
  }
}

/// fold_sums() over the kChunk threads of a group: the same pairs in the same order; the group's
/// first thread gets the sum. All threads of the warp must be here.
__device__ float fold_over_lanes(float sum) {
  for (int width = kChunk / 2; width > 0; width /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, width, kChunk);
  }
  return sum;
}

/// kBackwardLanes threads per block, whole blocks per CTA. Moves 12 bytes a weight.
template <class F>
__global__ void backward_kernel(const float* weights, const float* scales, const float* grad_out,
                                float* grad_weights, float* grad_scales, int64_t num_blocks) {
  static_assert(kThreads % kBackwardLanes<F> == 0);
  const int64_t index = thread_index();
  const int64_t block = index / kBackwardLanes<F>;
  const int lane = static_cast<int>(index % kBackwardLanes<F>);
  LaneSums sums;
  if (block < num_blocks) {
    sums = backward_lane<F>(block, lane, weights, scales, grad_out, grad_weights);
  }
  if constexpr (F::kNumScales > 0) {
    __shared__ float step_sums[kThreads / kChunk], offset_sums[kThreads / kChunk];
    const float step = fold_over_lanes(sums.step), offset = fold_over_lanes(sums.offset);
    if (threadIdx.x % kChunk == 0) {
      step_sums[threadIdx.x / kChunk] = step;
      offset_sums[threadIdx.x / kChunk] = offset;
    }
    __syncthreads();
    if (block < num_blocks && lane == 0) {
      const int first = threadIdx.x / kChunk;
      backward_scales<F>(block, scales, step_sums + first, offset_sums + first, grad_scales);
    }
  }
}

void check_launch(std::string_view operation, std::string_view format) {
  const cudaError_t error = cudaGetLastError();
  check(error == cudaSuccess, operation, " of ", format, " on CUDA: ", cudaGetErrorString(error));
}

/// CTAs for `count` threads. A grid's x dimension holds 2^31 - 1 of them: 2^39 weights.
unsigned int num_ctas(int64_t count) {
  const int64_t ctas = (count + kThreads - 1) / kThreads;
  check(ctas < (int64_t{1} << 31), count, " threads do not fit one CUDA launch");
  return static_cast<unsigned int>(ctas);
}

template <class F, class Out>
void launch_decode(const std::byte* blocks, void* out, int64_t num_blocks, cudaStream_t stream) {
  decode_kernel<F><<<num_ctas(num_blocks * kDecodeLanes<F>), kThreads, 0, stream>>>(
      blocks, static_cast<Out*>(out), num_blocks);
}

/// Calls body(F{}, name) for the format of the type, then checks its launch.
template <class Body>
void with_format(std::string_view operation, GgmlType type, const Body& body) {
#define NIBBLE_FORMAT(F)                \
  if (type == F::kType) {               \
    body(F{});                          \
    return check_launch(operation, #F); \
  }
#include "quant/format/formats.def"
#undef NIBBLE_FORMAT
  fail(operation, " on CUDA: no codec for tensor type ", static_cast<uint32_t>(type));
}

}  // namespace

void cuda_decode(GgmlType type, const std::byte* blocks, void* out, DeviceFloat out_type,
                 int64_t num_blocks, void* stream) {
  if (num_blocks == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  with_format("decode", type, [&](auto format) {
    using F = decltype(format);
    switch (out_type) {
      case DeviceFloat::kFloat32:
        return launch_decode<F, float>(blocks, out, num_blocks, on);
      case DeviceFloat::kFloat16:
        return launch_decode<F, Float16>(blocks, out, num_blocks, on);
      case DeviceFloat::kBfloat16:
        return launch_decode<F, Bfloat16>(blocks, out, num_blocks, on);
    }
  });
}

void cuda_encode_with(GgmlType type, const float* weights, const float* snapped, std::byte* blocks,
                      int64_t num_blocks, void* stream) {
  if (num_blocks == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  with_format("encode_with", type, [&](auto format) {
    using F = decltype(format);
    encode_with_kernel<F>
        <<<num_ctas(num_blocks), kThreads, 0, on>>>(weights, snapped, blocks, num_blocks);
  });
}

void cuda_fake_quantize(GgmlType type, const float* weights, const float* scales, float* out,
                        int64_t num_blocks, void* stream) {
  if (num_blocks == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  with_format("fake_quantize", type, [&](auto format) {
    using F = decltype(format);
    fake_quantize_kernel<F><<<num_ctas(num_blocks * F::kBlockSize), kThreads, 0, on>>>(
        weights, scales, out, num_blocks);
  });
}

void cuda_fake_quantize_backward(GgmlType type, const float* weights, const float* scales,
                                 const float* grad_out, float* grad_weights, float* grad_scales,
                                 int64_t num_blocks, void* stream) {
  if (num_blocks == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  with_format("fake_quantize_backward", type, [&](auto format) {
    using F = decltype(format);
    backward_kernel<F><<<num_ctas(num_blocks * kBackwardLanes<F>), kThreads, 0, on>>>(
        weights, scales, grad_out, grad_weights, grad_scales, num_blocks);
  });
}

}  // namespace nibble
