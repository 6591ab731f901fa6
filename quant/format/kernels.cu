// The launchers of kernels.h: those of the type's format (format_kernels.h), and their launches
// checked.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <string_view>

#include "base/error.h"
#include "quant/format/device.h"
#include "quant/format/format_kernels.h"
#include "quant/format/kernels.h"

#define NIBBLE_FORMAT(F)
#include "quant/format/formats.def"
#undef NIBBLE_FORMAT

namespace nibble {
namespace {

void check_cuda(cudaError_t error, std::string_view operation, std::string_view subject) {
  check(error == cudaSuccess, operation, " of ", subject, " on CUDA: ", cudaGetErrorString(error));
}

/// Calls body(FormatKernels<F>{}) for the format of the type, then checks its launch.
template <class Body>
void with_format(std::string_view operation, GgmlType type, const Body& body) {
#define NIBBLE_FORMAT(F)                                  \
  if (type == F::kType) {                                 \
    body(FormatKernels<F>{});                             \
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
    body(FormatKernels<F>{});                            \
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
  with_decoder(type,
               [&](auto kernels) { kernels.decode(blocks, out, out_type, num_blocks, stream); });
}

void cuda_encode(GgmlType type, const float* weights, std::byte* blocks, int64_t num_blocks,
                 EncodeMethod method, void* stream) {
  if (num_blocks == 0) return;
  with_format("encode", type,
              [&](auto kernels) { kernels.encode(weights, blocks, num_blocks, method, stream); });
}

void cuda_encode_with(GgmlType type, const float* weights, const float* snapped, std::byte* blocks,
                      int64_t num_blocks, void* stream) {
  if (num_blocks == 0) return;
  with_format("encode_with", type, [&](auto kernels) {
    kernels.encode_with(weights, snapped, blocks, num_blocks, stream);
  });
}

void cuda_fake_quantize(GgmlType type, const float* weights, const TrainedScales& scales,
                        float* out, int64_t num_blocks, void* stream) {
  if (num_blocks == 0) return;
  with_format("fake_quantize", type, [&](auto kernels) {
    kernels.fake_quantize(weights, scales, out, num_blocks, stream);
  });
}

void cuda_fake_quantize_backward(GgmlType type, const float* weights, const TrainedScales& scales,
                                 const float* grad_out, float* grad_weights, float* grad_scales,
                                 int64_t num_blocks, Estimator estimator, void* stream) {
  if (num_blocks == 0) return;
  with_format("fake_quantize_backward", type, [&](auto kernels) {
    kernels.fake_quantize_backward(weights, scales, grad_out, grad_weights, grad_scales, num_blocks,
                                   estimator, stream);
  });
}

void cuda_follow(GgmlType type, float* weights, const TrainedScales& from, const TrainedScales& to,
                 int64_t num_blocks, void* stream) {
  if (num_blocks == 0) return;
  with_format("follow", type,
              [&](auto kernels) { kernels.follow(weights, from, to, num_blocks, stream); });
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
