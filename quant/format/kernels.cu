// Thread indices for kernel_bodies.h. Every kernel is launched on a line of CTAs of kThreads
// threads; consecutive threads are consecutive lanes, so weights are read and written in whole
// lines.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <string_view>

#include "base/error.h"
#include "quant/format/device.h"
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
                                float* grad_weights, float* grad_scales, int64_t num_blocks) {
  constexpr int kLanes = kBackwardLanes<F, kWeights>;
  static_assert(kThreads % kLanes == 0);
  const int64_t index = thread_index();
  const int64_t block = index / kLanes;
  const int lane = static_cast<int>(index % kLanes);
  LaneSums<kWeights> sums;
  if (block < num_blocks)
    backward_lane<F, kWeights>(block, lane, weights, scales, grad_out, grad_weights, &sums);
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

void check_cuda(cudaError_t error, std::string_view operation, std::string_view subject) {
  check(error == cudaSuccess, operation, " of ", subject, " on CUDA: ", cudaGetErrorString(error));
}

/// CTAs for `count` threads. A grid's x dimension holds 2^31 - 1 of them: 2^39 threads.
unsigned int num_ctas(int64_t count) {
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
                     cudaStream_t stream) {
  const unsigned int ctas = num_ctas(num_blocks * kBackwardLanes<F, kWeights>);
  backward_kernel<F, kWeights><<<ctas, kThreads, 0, stream>>>(
      weights, scales, grad_out, grad_weights, grad_scales, num_blocks);
}

/// Calls body(F{}) for the format of the type, then checks its launch.
template <class Body>
void with_format(std::string_view operation, GgmlType type, const Body& body) {
#define NIBBLE_FORMAT(F)                                  \
  if (type == F::kType) {                                 \
    body(F{});                                            \
    return check_cuda(cudaGetLastError(), operation, #F); \
  }
#include "quant/format/formats.def"
#undef NIBBLE_FORMAT
  fail(operation, " on CUDA: no codec for tensor type ", static_cast<uint32_t>(type));
}

/// The same for the formats that are only decoded too.
template <class Body>
void with_decoder(GgmlType type, const Body& body) {
#define NIBBLE_FORMAT(F)
#define NIBBLE_DECODE_ONLY(F)                            \
  if (type == F::kType) {                                \
    body(F{});                                           \
    return check_cuda(cudaGetLastError(), "decode", #F); \
  }
#include "quant/format/formats.def"
#undef NIBBLE_DECODE_ONLY
#undef NIBBLE_FORMAT
  with_format("decode", type, body);
}

/// Memory of the current GPU.
class GpuMemory {
 public:
  explicit GpuMemory(int64_t bytes) {
    check_cuda(cudaMalloc(&memory_, static_cast<size_t>(bytes)), "allocation",
               concat(bytes, " bytes"));
  }
  ~GpuMemory() { cudaFree(memory_); }
  GpuMemory(const GpuMemory&) = delete;
  GpuMemory& operator=(const GpuMemory&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
};

/// Makes a GPU the current one, and the earlier one again.
class CurrentGpu {
 public:
  explicit CurrentGpu(int gpu) {
    check_cuda(cudaGetDevice(&earlier_), "choice", concat("GPU ", gpu));
    check_cuda(cudaSetDevice(gpu), "choice", concat("GPU ", gpu));
  }
  ~CurrentGpu() { cudaSetDevice(earlier_); }
  CurrentGpu(const CurrentGpu&) = delete;
  CurrentGpu& operator=(const CurrentGpu&) = delete;

 private:
  int earlier_ = 0;
};

/// Weights in GPU memory at once: 256 MB as float32.
constexpr int64_t kPieceWeights = int64_t{1} << 26;

struct Transfer {
  const std::byte* from;
  std::byte* to;
  int64_t from_bytes, to_bytes;  // of a block
};

/// Copies blocks to the GPU, has `launch` (from, to, count) turn them into others, and copies these
/// back, piece by piece.
template <class Launch>
void run_in_pieces(std::string_view operation, const Format& format, int64_t num_blocks,
                   const Transfer& transfer, const Launch& launch) {
  const int64_t most = std::min(num_blocks, kPieceWeights / format.block_size);
  if (most == 0) return;
  const GpuMemory from(most * transfer.from_bytes), to(most * transfer.to_bytes);
  for (int64_t first = 0; first < num_blocks; first += most) {
    const int64_t count = std::min(most, num_blocks - first);
    check_cuda(cudaMemcpy(from.as<void>(), transfer.from + first * transfer.from_bytes,
                          static_cast<size_t>(count * transfer.from_bytes), cudaMemcpyHostToDevice),
               operation, format.name);
    launch(from, to, count);
    // Waits for the kernel, and reports what went wrong in it.
    check_cuda(cudaMemcpy(transfer.to + first * transfer.to_bytes, to.as<void>(),
                          static_cast<size_t>(count * transfer.to_bytes), cudaMemcpyDeviceToHost),
               operation, format.name);
  }
}

}  // namespace

CudaGpus cuda_gpus() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();  // an error stays until it is read
  if (error == cudaSuccess && count > 0) return {count, ""};
  return {0, concat("CUDA finds no GPU (",
                    error == cudaSuccess ? "none is there" : cudaGetErrorString(error),
                    "); see nvidia-smi, or use the cpu")};
}

void cuda_decode(GgmlType type, const std::byte* blocks, void* out, DeviceFloat out_type,
                 int64_t num_blocks, void* stream) {
  if (num_blocks == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  with_decoder(type, [&](auto format) {
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

void cuda_encode(GgmlType type, const float* weights, std::byte* blocks, int64_t num_blocks,
                 EncodeMethod method, void* stream) {
  if (num_blocks == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  const unsigned int ctas = num_ctas(num_blocks);
  with_format("encode", type, [&](auto format) {
    using F = decltype(format);
    switch (method) {
      case EncodeMethod::kGgml:
        encode_kernel<F, EncodeMethod::kGgml>
            <<<ctas, kThreads, 0, on>>>(weights, blocks, num_blocks);
        break;
      case EncodeMethod::kRtn:
        encode_kernel<F, EncodeMethod::kRtn>
            <<<ctas, kThreads, 0, on>>>(weights, blocks, num_blocks);
        break;
      case EncodeMethod::kSearch:
        encode_kernel<F, EncodeMethod::kSearch>
            <<<ctas, kThreads, 0, on>>>(weights, blocks, num_blocks);
        break;
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

void cuda_fake_quantize(GgmlType type, const float* weights, const TrainedScales& scales,
                        float* out, int64_t num_blocks, void* stream) {
  if (num_blocks == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  const bool aligned = all_aligned(weights, out);
  with_format("fake_quantize", type, [&](auto format) {
    using F = decltype(format);
    if (aligned)
      launch_fake_quantize<F, kVectorFloats>(weights, scales, out, num_blocks, on);
    else
      launch_fake_quantize<F, 1>(weights, scales, out, num_blocks, on);
  });
}

void cuda_fake_quantize_backward(GgmlType type, const float* weights, const TrainedScales& scales,
                                 const float* grad_out, float* grad_weights, float* grad_scales,
                                 int64_t num_blocks, void* stream) {
  if (num_blocks == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  const bool aligned = all_aligned(weights, grad_out, grad_weights);
  with_format("fake_quantize_backward", type, [&](auto format) {
    using F = decltype(format);
    if (aligned)
      launch_backward<F, kVectorFloats>(weights, scales, grad_out, grad_weights, grad_scales,
                                        num_blocks, on);
    else
      launch_backward<F, 1>(weights, scales, grad_out, grad_weights, grad_scales, num_blocks, on);
  });
}

void cuda_decode_rows(int gpu, GgmlType type, const std::byte* blocks, float* out,
                      int64_t num_blocks) {
  const Format& format = require_decoder(type);
  const CurrentGpu current(gpu);
  const Transfer transfer = {blocks, reinterpret_cast<std::byte*>(out), format.block_bytes,
                             format.block_size * static_cast<int64_t>(sizeof(float))};
  run_in_pieces("decode", format, num_blocks, transfer,
                [&](const GpuMemory& from, const GpuMemory& to, int64_t count) {
                  cuda_decode(type, from.as<std::byte>(), to.as<float>(), DeviceFloat::kFloat32,
                              count, nullptr);
                });
}

void cuda_encode_rows(int gpu, GgmlType type, const float* weights, std::byte* blocks,
                      int64_t num_blocks, EncodeMethod method) {
  const Format& format = require_format(type);
  const CurrentGpu current(gpu);
  const Transfer transfer = {reinterpret_cast<const std::byte*>(weights), blocks,
                             format.block_size * static_cast<int64_t>(sizeof(float)),
                             format.block_bytes};
  run_in_pieces("encode", format, num_blocks, transfer,
                [&](const GpuMemory& from, const GpuMemory& to, int64_t count) {
                  cuda_encode(type, from.as<float>(), to.as<std::byte>(), count, method, nullptr);
                });
}

}  // namespace nibble
