// The CUDA launchers of one format F: declared for kernels.cu, which finds them by GGUF type;
// defined by format_kernels.cuh in a source of the format's own. Arguments as in kernels.h;
// num_blocks is not 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/format/kernels.h"

namespace nibble {

template <class F>
struct FormatKernels {
  static void decode(const std::byte* blocks, void* out, DeviceFloat out_type, int64_t num_blocks,
                     void* stream);
  static void encode(const float* weights, std::byte* blocks, int64_t num_blocks,
                     EncodeMethod method, void* stream);
  static void encode_with(const float* weights, const float* snapped, std::byte* blocks,
                          int64_t num_blocks, void* stream);
  static void fake_quantize(const float* weights, const TrainedScales& scales, float* out,
                            int64_t num_blocks, void* stream);
  static void fake_quantize_backward(const float* weights, const TrainedScales& scales,
                                     const float* grad_out, float* grad_weights, float* grad_scales,
                                     int64_t num_blocks, Estimator estimator, void* stream);
  static void follow(float* weights, const TrainedScales& from, const TrainedScales& to,
                     int64_t num_blocks, void* stream);
};

}  // namespace nibble
