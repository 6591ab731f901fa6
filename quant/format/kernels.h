// CUDA launchers of the row functions in struct Format, bit-equal to them. All pointers are device
// memory; weights and gradients float32, num_blocks * block_size of each; scales num_blocks *
// num_scales. `stream` is a cudaStream_t. They return once launched and throw Error, naming
// operation and format, when the launch fails or the type has no codec. Built only with
// NIBBLE_CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "io/ggml_type.h"

namespace nibble {

enum class DeviceFloat { kFloat32, kFloat16, kBfloat16 };

/// out: num_blocks * block_size numbers of out_type (rounded to nearest even from float32).
void cuda_decode(GgmlType type, const std::byte* blocks, void* out, DeviceFloat out_type,
                 int64_t num_blocks, void* stream);
void cuda_encode_with(GgmlType type, const float* weights, const float* snapped, std::byte* blocks,
                      int64_t num_blocks, void* stream);
void cuda_fake_quantize(GgmlType type, const float* weights, const float* scales, float* out,
                        int64_t num_blocks, void* stream);
/// grad_weights may be grad_out.
void cuda_fake_quantize_backward(GgmlType type, const float* weights, const float* scales,
                                 const float* grad_out, float* grad_weights, float* grad_scales,
                                 int64_t num_blocks, void* stream);

}  // namespace nibble
