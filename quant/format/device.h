// Where row functions, models and training run: on the CPU, or on one of the machine's CUDA GPUs.
// The only place that turns a name into a device.
#pragma once

#include <string>
#include <string_view>

namespace nibble {

struct Device {
  bool cuda = false;
  int index = 0;  // of the GPU

  bool operator==(const Device&) const = default;
};

/// What this build can use of this machine.
struct CudaGpus {
  int count = 0;
  std::string problem;  // why there is none, and what to do about it; "" when count > 0
};
CudaGpus cuda_gpus();

/// "cpu", "cuda" (GPU 0), "cuda:N", or "auto" (GPU 0 where one can be used, else the CPU). Throws
/// Error (usage) for another name, and for a GPU that cannot be used, saying why.
Device parse_device(std::string_view name);
/// The same for given GPUs.
Device parse_device(std::string_view name, const CudaGpus& gpus);
/// "cpu" or "cuda:0".
std::string device_name(const Device& device);

}  // namespace nibble
