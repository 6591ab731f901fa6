// Device names, and what is said where a GPU cannot be had.
#include "quant/format/device.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "quant/format/kernels.h"

namespace nibble {
namespace {

const CudaGpus kNone = {0, "no GPU here"};
const CudaGpus kTwo = {2, ""};

/// What parse_device() says, with its exit status.
std::string refusal(std::string_view name, const CudaGpus& gpus) {
  try {
    parse_device(name, gpus);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), 2);
    return error.what();
  }
  return "";
}

TEST(Device, NamesAreParsed) {
  EXPECT_EQ(parse_device("cpu", kNone), (Device{false, 0}));
  EXPECT_EQ(parse_device("cuda", kTwo), (Device{true, 0}));
  EXPECT_EQ(parse_device("cuda:1", kTwo), (Device{true, 1}));
  EXPECT_EQ(parse_device("auto", kNone), (Device{false, 0}));
  EXPECT_EQ(parse_device("auto", kTwo), (Device{true, 0}));
  for (const char* name : {"cpu", "cuda:0", "cuda:1"})
    EXPECT_EQ(device_name(parse_device(name, kTwo)), name);
}

TEST(Device, RefusalsSayWhy) {
  EXPECT_EQ(refusal("cuda", kNone), "device cuda: no GPU here");
  EXPECT_EQ(refusal("cuda:2", kTwo),
            "device cuda:2: this machine has 2 GPUs, and the first is cuda:0");
  EXPECT_NE(refusal("cude", kTwo).find("did you mean 'cuda'?"), std::string::npos);
  for (const char* name :
       {"", "gpu", "cuda:", "cuda:x", "cuda:1x", "cuda:-1", "cuda: 1", "cuda:99999999999999999999"})
    EXPECT_NE(refusal(name, kTwo).find("cpu, cuda, cuda:N or auto"), std::string::npos) << name;
}

TEST(Device, WithoutAGpuThereIsAReason) {
  const CudaGpus gpus = cuda_gpus();
  EXPECT_EQ(gpus.count == 0, !gpus.problem.empty());
#ifndef NIBBLE_CUDA
  EXPECT_NE(gpus.problem.find("no CUDA"), std::string::npos) << gpus.problem;
  EXPECT_THROW(cuda_decode_rows(0, GgmlType::kQ4_0, nullptr, nullptr, 1), Error);
#endif
}

}  // namespace
}  // namespace nibble
