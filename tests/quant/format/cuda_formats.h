// The GPU's row functions as a second list of formats, from and to host memory, so that the typed
// suites run on both devices. scales_of and snap, and encoding with importance, are the CPU's.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "quant/format/device.h"
#include "quant/format/kernels.h"
#include "quant/format/registry.h"

#ifdef NIBBLE_CUDA
#include <cuda_runtime_api.h>
#endif

#define NIBBLE_FORMAT(F)
#include "quant/format/formats.def"
#undef NIBBLE_FORMAT

namespace nibble {

#ifdef NIBBLE_CUDA

/// A host array's copy on GPU 0.
template <class T>
class GpuCopy {
 public:
  GpuCopy(const T* values, int64_t count) : bytes_(count * sizeof(T)) {
    check(cudaMalloc(&memory_, bytes_ + 1) == cudaSuccess, "no GPU memory");
    check(cudaMemcpy(memory_, values, bytes_, cudaMemcpyHostToDevice) == cudaSuccess,
          "copy to GPU");
  }
  ~GpuCopy() { cudaFree(memory_); }
  GpuCopy(const GpuCopy&) = delete;
  GpuCopy& operator=(const GpuCopy&) = delete;

  T* data() const { return static_cast<T*>(memory_); }
  void copy_to(T* values) const {
    const cudaError_t error = cudaMemcpy(values, memory_, bytes_, cudaMemcpyDeviceToHost);
    check(error == cudaSuccess, "a kernel failed: ", cudaGetErrorString(error));
  }

 private:
  void* memory_ = nullptr;
  size_t bytes_;
};

template <GgmlType kType>
struct CudaRows {
  static const Format& cpu() { return require_format(kType); }

  static void decode(const std::byte* blocks, float* out, int64_t num_blocks) {
    cuda_decode_rows(0, kType, blocks, out, num_blocks);
  }
  static void encode(const float* weights, const float* importance, std::byte* blocks,
                     int64_t length, EncodeMethod method) {
    if (importance) return cpu().encode(weights, importance, blocks, length, method);
    cuda_encode_rows(0, kType, weights, blocks, length / cpu().block_size, method);
  }
  static void encode_with(const float* weights, const float* snapped, std::byte* blocks,
                          int64_t num_blocks) {
    const GpuCopy<float> from(weights, num_blocks * cpu().block_size),
        scales(snapped, num_blocks * cpu().num_scales);
    const GpuCopy<std::byte> to(blocks, num_blocks * cpu().block_bytes);
    cuda_encode_with(kType, from.data(), scales.data(), to.data(), num_blocks, nullptr);
    to.copy_to(blocks);
  }
  static void fake_quantize(const float* weights, const float* scales, float* out,
                            int64_t num_blocks) {
    const GpuCopy<float> from(weights, num_blocks * cpu().block_size),
        trained(scales, num_blocks * cpu().num_scales), to(out, num_blocks * cpu().block_size);
    cuda_fake_quantize(kType, from.data(), {trained.data()}, to.data(), num_blocks, nullptr);
    to.copy_to(out);
  }
  static void fake_quantize_backward(const float* weights, const float* scales,
                                     const float* grad_out, float* grad_weights, float* grad_scales,
                                     int64_t num_blocks, Estimator estimator) {
    const GpuCopy<float> from(weights, num_blocks * cpu().block_size),
        trained(scales, num_blocks * cpu().num_scales),
        gradients(grad_out, num_blocks * cpu().block_size),
        to_scales(grad_scales, num_blocks * cpu().num_scales);
    cuda_fake_quantize_backward(kType, from.data(), {trained.data()}, gradients.data(),
                                gradients.data(), to_scales.data(), num_blocks, estimator, nullptr);
    gradients.copy_to(grad_weights);
    to_scales.copy_to(grad_scales);
  }
  static void follow(float* weights, const float* from, const float* to, int64_t num_blocks) {
    const GpuCopy<float> moved(weights, num_blocks * cpu().block_size),
        before(from, num_blocks * cpu().num_scales), after(to, num_blocks * cpu().num_scales);
    cuda_follow(kType, moved.data(), {before.data()}, {after.data()}, num_blocks, nullptr);
    moved.copy_to(weights);
  }

  static Format row() {
    Format format = cpu();
    format.decode = decode;
    format.encode = encode;
    format.encode_with = encode_with;
    format.fake_quantize = fake_quantize;
    format.fake_quantize_backward = fake_quantize_backward;
    if (format.follow) format.follow = follow;
    return format;
  }
};

#endif  // NIBBLE_CUDA

/// In the order of formats(); the CPU's functions in a build without CUDA, where tests of them
/// skip.
inline std::span<const Format> cuda_formats() {
  static const std::vector<Format> kAll = [] {
    std::vector<Format> all;
#ifdef NIBBLE_CUDA
#define NIBBLE_FORMAT(F) all.push_back(CudaRows<F::kType>::row());
#include "quant/format/formats.def"
#undef NIBBLE_FORMAT
#else
    all.assign(formats().begin(), formats().end());
#endif
    return all;
  }();
  return kAll;
}

/// A format on one of the devices: what a typed suite is instantiated with.
struct DeviceFormat {
  bool cuda;
  size_t index;  // in formats()

  const Format& format() const { return (cuda ? cuda_formats() : formats())[index]; }
  std::string name() const {
    return std::string(formats()[index].name) + (cuda ? "_on_CUDA" : "_on_CPU");
  }
};

/// The formats that `holds` is true of, on each device. Without a GPU the first of its formats
/// stands for all, so that each test is seen to skip, once.
template <class Predicate>
std::vector<DeviceFormat> on_both_devices(Predicate holds) {
  std::vector<DeviceFormat> on_cpu, on_gpu;
  for (size_t i = 0; i < formats().size(); ++i) {
    if (!holds(formats()[i])) continue;
    on_cpu.push_back({false, i});
    on_gpu.push_back({true, i});
  }
  if (cuda_gpus().count == 0) on_gpu.resize(1);
  on_cpu.insert(on_cpu.end(), on_gpu.begin(), on_gpu.end());
  return on_cpu;
}
inline std::vector<DeviceFormat> all_on_both_devices() {
  return on_both_devices([](const Format&) { return true; });
}

/// For SetUp(): skips, saying why, where the device is not there.
#define NIBBLE_SKIP_WITHOUT_DEVICE(cuda)                                            \
  if (const nibble::CudaGpus gpus = nibble::cuda_gpus(); (cuda) && gpus.count == 0) \
  GTEST_SKIP() << gpus.problem

}  // namespace nibble
