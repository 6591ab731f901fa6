// nibble's devices as LibTorch's, and what kernels need of them.
#pragma once

#include "quant/fake/torch.h"
#include "quant/format/device.h"

namespace nibble {

torch::Device torch_device(const Device& device);

/// The stream that LibTorch's operations on a CUDA device are queued on, as a cudaStream_t.
void* cuda_stream(torch::Device device);

/// Returns when all that was queued on the device is done. Nothing to wait for on the CPU.
void synchronize(torch::Device device);

}  // namespace nibble
