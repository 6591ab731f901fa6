#include "quant/format/device.h"

#include <charconv>

#include "base/error.h"

namespace nibble {
namespace {

/// N of "cuda:N", 0 of "cuda", or -1.
int gpu_index(std::string_view name) {
  if (name == "cuda") return 0;
  constexpr std::string_view kPrefix = "cuda:";
  if (!name.starts_with(kPrefix)) return -1;
  const std::string_view digits = name.substr(kPrefix.size());
  int index = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  return error == std::errc() && end == digits.data() + digits.size() ? index : -1;
}

}  // namespace

Device parse_device(std::string_view name, const CudaGpus& gpus) {
  if (name == "cpu") return {};
  if (name == "auto") return {gpus.count > 0, 0};
  const int index = gpu_index(name);
  if (index < 0)
    fail_usage("no device '", name, "'; cpu, cuda, cuda:N or auto",
               did_you_mean(name, {"cpu", "cuda", "auto"}));
  if (gpus.count == 0) fail_usage("device ", name, ": ", gpus.problem);
  if (index >= gpus.count)
    fail_usage("device ", name, ": this machine has ", gpus.count,
               gpus.count == 1 ? " GPU" : " GPUs", ", and the first is cuda:0");
  return {true, index};
}

Device parse_device(std::string_view name) {
  // The GPUs are asked for only when needed: the driver takes a while to start.
  return parse_device(name, name == "cpu" ? CudaGpus{} : cuda_gpus());
}

std::string device_name(const Device& device) {
  return device.cuda ? concat("cuda:", device.index) : "cpu";
}

}  // namespace nibble
