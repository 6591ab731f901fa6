#include "quant/fake/torch_device.h"

#include <torch/cuda.h>

#ifdef NIBBLE_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

#include "base/error.h"

namespace nibble {

torch::Device torch_device(const Device& device) {
  if (!device.cuda) return torch::kCPU;
  return torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(device.index));
}

void* cuda_stream(torch::Device device) {
#ifdef NIBBLE_CUDA
  return c10::cuda::getCurrentCUDAStream(device.index()).stream();
#else
  fail("a tensor on ", device.str(), " in a build without CUDA");
#endif
}

void synchronize(torch::Device device) {
  if (device.is_cuda()) torch::cuda::synchronize(device.index());
}

}  // namespace nibble
