// The CUDA kernels of every format: decode, fake quantization forward and backward, the encoders;
// a device-to-device copy in the same run as the measure of what memory allows. Each is verified
// against the CPU before it is timed. Times are the GPU's own (events); items_per_second: weights;
// bytes_per_second: bytes read and written.
#ifdef NIBBLE_CUDA
#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/float16.h"
#include "quant/format/device.h"
#include "quant/format/kernels.h"
#include "quant/format/rows.h"
#include "tests/bench/gaussian_weights.h"

namespace nibble {
namespace {

/// 512 MB as float32: ten times the largest cache of a GPU.
constexpr int64_t kNumWeights = int64_t{1} << 27;
constexpr int64_t kRowLength = 4096;

void require(cudaError_t error) {
  check(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

/// GPU memory for `count` numbers.
template <class T>
class GpuArray {
 public:
  explicit GpuArray(size_t count) : count_(count) { require(cudaMalloc(&memory_, bytes() + 1)); }
  explicit GpuArray(const std::vector<T>& values) : GpuArray(values.size()) {
    require(cudaMemcpy(memory_, values.data(), bytes(), cudaMemcpyHostToDevice));
  }
  ~GpuArray() { cudaFree(memory_); }
  GpuArray(const GpuArray&) = delete;
  GpuArray& operator=(const GpuArray&) = delete;

  T* data() const { return static_cast<T*>(memory_); }
  size_t bytes() const { return count_ * sizeof(T); }
  /// Whether it holds these numbers, bit for bit.
  bool holds(const std::vector<T>& wanted) const {
    std::vector<T> found(count_);
    require(cudaMemcpy(found.data(), memory_, bytes(), cudaMemcpyDeviceToHost));
    return std::memcmp(found.data(), wanted.data(), bytes()) == 0;
  }

 private:
  void* memory_ = nullptr;
  size_t count_;
};

const std::vector<float>& gaussian_weights() {
  static const std::vector<float> kWeights = draw_gaussian_weights(kNumWeights);
  return kWeights;
}

/// A format's blocks and scales, of the weights by round to nearest.
struct Case {
  explicit Case(const Format& f) : format(f), num_blocks(kNumWeights / f.block_size) {
    blocks = encode_tensor(f.type, gaussian_weights(), kRowLength, {}, EncodeMethod::kRtn);
    scales.resize(num_blocks * f.num_scales);
    f.scales_of(blocks.data(), scales.data(), num_blocks);
  }

  const Format& format;
  int64_t num_blocks;
  std::vector<std::byte> blocks;
  std::vector<float> scales;
};

/// Times `launch` by the GPU's clock, once an iteration; bytes: that it moves.
template <class Launch>
void time_launches(benchmark::State& state, int64_t bytes, const Launch& launch) {
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin));
  require(cudaEventCreate(&end));
  for (auto _ : state) {
    require(cudaEventRecord(begin, nullptr));
    launch();
    require(cudaEventRecord(end, nullptr));
    require(cudaEventSynchronize(end));
    float milliseconds = 0;
    require(cudaEventElapsedTime(&milliseconds, begin, end));
    state.SetIterationTime(milliseconds * 1e-3);
  }
  require(cudaEventDestroy(begin));
  require(cudaEventDestroy(end));
  state.SetItemsProcessed(state.iterations() * kNumWeights);
  state.SetBytesProcessed(state.iterations() * bytes);
}

void bench_copy(benchmark::State& state) {
  const GpuArray<float> from(gaussian_weights()), to(kNumWeights);
  const auto copy = [&] {
    require(
        cudaMemcpyAsync(to.data(), from.data(), from.bytes(), cudaMemcpyDeviceToDevice, nullptr));
  };
  copy();
  if (!to.holds(gaussian_weights())) return state.SkipWithError("copies differ");
  time_launches(state, 2 * static_cast<int64_t>(from.bytes()), copy);
}

template <class T>
std::vector<T> converted(const std::vector<float>& values, T (*convert)(float)) {
  std::vector<T> all(values.size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = convert(values[i]);
  return all;
}

template <class T>
void bench_decode(benchmark::State& state, const Format& format, DeviceFloat type,
                  T (*convert)(float)) {
  const Case test(format);
  std::vector<float> decoded(kNumWeights);
  decode_tensor(format.type, test.blocks, decoded);
  const GpuArray<std::byte> blocks(test.blocks);
  const GpuArray<T> out(kNumWeights);
  const auto decode = [&] {
    cuda_decode(format.type, blocks.data(), out.data(), type, test.num_blocks, nullptr);
  };
  decode();
  if (!out.holds(converted(decoded, convert))) return state.SkipWithError("decodes differ");
  time_launches(state, static_cast<int64_t>(blocks.bytes() + out.bytes()), decode);
}

void bench_fake_quantize(benchmark::State& state, const Format& format) {
  const Case test(format);
  const GpuArray<float> weights(gaussian_weights()), initial(test.scales),
      ratios(std::vector<float>(test.scales.size(), 1.0f)), out(kNumWeights);
  std::vector<float> wanted(kNumWeights);
  format.fake_quantize(gaussian_weights().data(), test.scales.data(), wanted.data(),
                       test.num_blocks);
  const auto fake_quantize = [&] {
    cuda_fake_quantize(format.type, weights.data(), {initial.data(), ratios.data()}, out.data(),
                       test.num_blocks, nullptr);
  };
  fake_quantize();
  if (!out.holds(wanted)) return state.SkipWithError("fake quantization differs");
  time_launches(state, static_cast<int64_t>(2 * weights.bytes() + 2 * initial.bytes()),
                fake_quantize);
}

void bench_backward(benchmark::State& state, const Format& format) {
  const Case test(format);
  const GpuArray<float> weights(gaussian_weights()), initial(test.scales),
      ratios(std::vector<float>(test.scales.size(), 1.0f)), grad_out(gaussian_weights()),
      grad_weights(kNumWeights), grad_ratios(test.scales.size());
  std::vector<float> wanted(kNumWeights), wanted_scales(test.scales.size());
  format.fake_quantize_backward(gaussian_weights().data(), test.scales.data(),
                                gaussian_weights().data(), wanted.data(), wanted_scales.data(),
                                test.num_blocks, Estimator::kRelative);
  for (size_t i = 0; i < wanted_scales.size(); ++i) wanted_scales[i] *= test.scales[i];
  const auto backward = [&] {
    cuda_fake_quantize_backward(format.type, weights.data(), {initial.data(), ratios.data()},
                                grad_out.data(), grad_weights.data(), grad_ratios.data(),
                                test.num_blocks, Estimator::kRelative, nullptr);
  };
  backward();
  if (!grad_weights.holds(wanted) || !grad_ratios.holds(wanted_scales))
    return state.SkipWithError("gradients differ");
  time_launches(state, static_cast<int64_t>(3 * weights.bytes() + 3 * initial.bytes()), backward);
}

void bench_encode(benchmark::State& state, const Format& format, EncodeMethod method) {
  const Case test(format);
  const GpuArray<float> weights(gaussian_weights());
  const GpuArray<std::byte> blocks(test.blocks.size());
  const auto encode = [&] {
    cuda_encode(format.type, weights.data(), blocks.data(), test.num_blocks, method, nullptr);
  };
  encode();
  if (!blocks.holds(encode_tensor(format.type, gaussian_weights(), kRowLength, {}, method)))
    return state.SkipWithError("blocks differ");
  time_launches(state, static_cast<int64_t>(weights.bytes() + blocks.bytes()), encode);
}

template <class Body>
void add(const std::string& name, const Body& body) {
  benchmark::RegisterBenchmark(name.c_str(), body)->Unit(benchmark::kMillisecond)->UseManualTime();
}

const bool kRegistered = [] {
  if (const CudaGpus gpus = cuda_gpus(); gpus.count == 0) {
    benchmark::RegisterBenchmark("cuda", [problem = gpus.problem](benchmark::State& state) {
      state.SkipWithError(problem.c_str());
    });
    return false;
  }
  add("cuda_copy", bench_copy);
  for (const Format& format : formats()) {
    const std::string name(format.name);
    add("cuda_decode/" + name + "/float32", [&](benchmark::State& state) {
      bench_decode<float>(state, format, DeviceFloat::kFloat32, [](float x) { return x; });
    });
    add("cuda_decode/" + name + "/float16", [&](benchmark::State& state) {
      bench_decode<uint16_t>(state, format, DeviceFloat::kFloat16,
                             [](float x) { return float_to_float16(x); });
    });
    add("cuda_decode/" + name + "/bfloat16", [&](benchmark::State& state) {
      bench_decode<uint16_t>(state, format, DeviceFloat::kBfloat16,
                             [](float x) { return float_to_bfloat16(x); });
    });
    if (format.num_scales == 0) continue;
    add("cuda_fake_quantize/" + name,
        [&](benchmark::State& state) { bench_fake_quantize(state, format); });
    add("cuda_fake_quantize_backward/" + name,
        [&](benchmark::State& state) { bench_backward(state, format); });
    for (const auto& [label, method] : {std::pair{"rtn", EncodeMethod::kRtn},
                                        {"ggml", EncodeMethod::kGgml},
                                        {"search", EncodeMethod::kSearch}})
      add("cuda_encode_" + std::string(label) + "/" + name,
          [&format, method = method](benchmark::State& state) {
            bench_encode(state, format, method);
          });
  }
  return true;
}();

}  // namespace
}  // namespace nibble
#endif
