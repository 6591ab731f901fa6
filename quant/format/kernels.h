// CUDA launchers of the row functions in struct Format, bit-equal to them. All pointers are device
// memory of the current GPU; weights and gradients float32, num_blocks * block_size of each; scales
// num_blocks * num_scales. Pointers that are aligned to 16 bytes are read and written 16 bytes at a
// time. `stream` is a cudaStream_t. They return once launched and throw Error, naming operation and
// format, when the launch fails, the type has no codec, or the build has no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/host_device.h"
#include "quant/format/registry.h"

namespace nibble {

enum class DeviceFloat { kFloat32, kFloat16, kBfloat16 };

/// Scales as training holds them: initial values, times the ratios that train where there are any.
struct TrainedScales {
  const float* initial;
  const float* ratios = nullptr;

  NIBBLE_HD float at(int64_t i) const {
    if (!ratios) return initial[i];
    return initial[i] * (ratios[i] < 0.0f ? 0.0f : ratios[i]);
  }
};

/// out: num_blocks * block_size numbers of out_type (rounded to nearest even from float32).
void cuda_decode(GgmlType type, const std::byte* blocks, void* out, DeviceFloat out_type,
                 int64_t num_blocks, void* stream);
/// PTQ without importance, which makes blocks independent of their rows.
void cuda_encode(GgmlType type, const float* weights, std::byte* blocks, int64_t num_blocks,
                 EncodeMethod method, void* stream);
void cuda_encode_with(GgmlType type, const float* weights, const float* snapped, std::byte* blocks,
                      int64_t num_blocks, void* stream);
void cuda_fake_quantize(GgmlType type, const float* weights, const TrainedScales& scales,
                        float* out, int64_t num_blocks, void* stream);
/// grad_weights may be grad_out. grad_scales: dL/dratios where scales have ratios, else dL/dscales;
/// nullptr where not wanted.
void cuda_fake_quantize_backward(GgmlType type, const float* weights, const TrainedScales& scales,
                                 const float* grad_out, float* grad_weights, float* grad_scales,
                                 int64_t num_blocks, Estimator estimator, void* stream);
/// Of formats that have scales.
void cuda_follow(GgmlType type, float* weights, const TrainedScales& from, const TrainedScales& to,
                 int64_t num_blocks, void* stream);

// The same from and to host memory, in pieces that fit any GPU. They return when all is done, and
// also throw when the GPU's memory or the kernels fail.

void cuda_decode_rows(int gpu, GgmlType type, const std::byte* blocks, float* out,
                      int64_t num_blocks);
void cuda_encode_rows(int gpu, GgmlType type, const float* weights, std::byte* blocks,
                      int64_t num_blocks, EncodeMethod method);

}  // namespace nibble
