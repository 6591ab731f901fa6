// Block formats, one thread: decode (and ggml's own, where NIBBLE_GGML_BASE names its
// libggml-base.so), fake quantization forward and backward, encoders; memcpy in the same run as the
// measure of what memory allows. Each is verified before it is timed. items_per_second: weights;
// bytes_per_second: bytes read and written.
#include <benchmark/benchmark.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "quant/format/registry.h"
#include "quant/format/targets.h"
#include "tests/bench/gaussian_weights.h"

namespace nibble {
namespace {

/// Larger than any cache near a core.
constexpr int64_t kNumWeights = int64_t{1} << 24;
/// For the encoders, which take longer.
constexpr int64_t kNumEncoded = int64_t{1} << 20;
constexpr int64_t kRowLength = 4096;

const std::vector<float>& gaussian_weights() {
  static const std::vector<float> kWeights = draw_gaussian_weights(kNumWeights);
  return kWeights;
}

/// Buffers of one format's whole test, made anew for each benchmark so that only one format holds
/// memory.
struct Case {
  explicit Case(const Format& f) : format(f), num_blocks(kNumWeights / f.block_size) {
    blocks.resize(num_blocks * f.block_bytes);
    scales.resize(num_blocks * f.num_scales + 1);
    f.encode(weights().data(), nullptr, blocks.data(), kNumWeights, EncodeMethod::kRtn);
    f.scales_of(blocks.data(), scales.data(), num_blocks);
    decoded.resize(kNumWeights);
    f.decode(blocks.data(), decoded.data(), num_blocks);
  }
  static const std::vector<float>& weights() { return gaussian_weights(); }

  const Format& format;
  int64_t num_blocks;
  std::vector<std::byte> blocks;
  std::vector<float> scales, decoded;
};

void set_rates(benchmark::State& state, int64_t num_weights, int64_t bytes) {
  state.SetItemsProcessed(state.iterations() * num_weights);
  state.SetBytesProcessed(state.iterations() * bytes);
}

bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Where all decodes and the copy write: their pages are the same, large or small.
std::vector<float>& output() {
  static std::vector<float> out(kNumWeights);
  return out;
}

void bench_copy(benchmark::State& state) {
  std::vector<float>& out = output();
  for (auto _ : state) {
    std::memcpy(out.data(), gaussian_weights().data(), kNumWeights * sizeof(float));
    benchmark::ClobberMemory();
  }
  set_rates(state, kNumWeights, 2 * kNumWeights * sizeof(float));
}

using ToFloat = void (*)(const void*, float*, int64_t);

void bench_decode(benchmark::State& state, const Format& format, ToFloat to_float) {
  const Case test(format);
  std::vector<float>& out = output();
  const auto decode = [&] {
    if (to_float) {
      to_float(test.blocks.data(), out.data(), kNumWeights);
    } else {
      format.decode(test.blocks.data(), out.data(), test.num_blocks);
    }
  };
  decode();
  if (!same_bytes(out, test.decoded)) return state.SkipWithError("decodes differ");
  for (auto _ : state) {
    decode();
    benchmark::ClobberMemory();
  }
  set_rates(state, kNumWeights, test.blocks.size() + kNumWeights * sizeof(float));
}

void bench_fake_quantize(benchmark::State& state, const Format& format) {
  const Case test(format);
  std::vector<float>& out = output();
  format.fake_quantize(test.weights().data(), test.scales.data(), out.data(), test.num_blocks);
  if (!same_bytes(out, test.decoded)) return state.SkipWithError("fake quantization differs");
  for (auto _ : state) {
    format.fake_quantize(test.weights().data(), test.scales.data(), out.data(), test.num_blocks);
    benchmark::ClobberMemory();
  }
  set_rates(state, kNumWeights, 2 * kNumWeights * sizeof(float));
}

void bench_backward(benchmark::State& state, const Format& format) {
  const Case test(format);
  const std::vector<float>& grad_out = test.weights();
  std::vector<float> grad_weights(kNumWeights), grad_scales(test.scales.size());
  std::vector<float> expected(kNumWeights), expected_scales(test.scales.size());
  targets()[0].formats[&format - formats().data()].fake_quantize_backward(
      test.weights().data(), test.scales.data(), grad_out.data(), expected.data(),
      expected_scales.data(), test.num_blocks, Estimator::kRelative);
  const auto backward = [&] {
    format.fake_quantize_backward(test.weights().data(), test.scales.data(), grad_out.data(),
                                  grad_weights.data(), grad_scales.data(), test.num_blocks,
                                  Estimator::kRelative);
  };
  backward();
  if (!same_bytes(grad_weights, expected) || !same_bytes(grad_scales, expected_scales)) {
    return state.SkipWithError("gradients differ from the generic code's");
  }
  for (auto _ : state) {
    backward();
    benchmark::ClobberMemory();
  }
  set_rates(state, kNumWeights, 3 * kNumWeights * sizeof(float));
}

void bench_encode(benchmark::State& state, const Format& format, EncodeMethod method,
                  bool weighted) {
  const std::vector<float> importance(kRowLength, 1.0f);
  std::vector<std::byte> blocks(kNumEncoded / format.block_size * format.block_bytes);
  const int64_t row_bytes = kRowLength / format.block_size * format.block_bytes;
  for (auto _ : state) {
    for (int64_t row = 0; row < kNumEncoded / kRowLength; ++row) {
      format.encode(gaussian_weights().data() + row * kRowLength,
                    weighted ? importance.data() : nullptr, blocks.data() + row * row_bytes,
                    kRowLength, method);
    }
    benchmark::ClobberMemory();
  }
  set_rates(state, kNumEncoded, kNumEncoded * sizeof(float) + blocks.size());
}

/// The start of ggml's struct ggml_type_traits, as far as to_float.
struct GgmlTypeTraits {
  const char* type_name;
  int64_t block_size, block_size_interleave;
  size_t type_size;
  bool is_quantized;
  ToFloat to_float;
};

ToFloat ggml_to_float(GgmlType type) {
  const char* path = std::getenv("NIBBLE_GGML_BASE");
  if (!path) return nullptr;
  static void* library = dlopen(path, RTLD_NOW);
  check(library != nullptr, "NIBBLE_GGML_BASE: ", path, " cannot be loaded");
  using GetTraits = const GgmlTypeTraits* (*)(int);
  const auto get_traits = reinterpret_cast<GetTraits>(dlsym(library, "ggml_get_type_traits"));
  check(get_traits != nullptr, "NIBBLE_GGML_BASE: ", path, " has no ggml_get_type_traits");
  return get_traits(static_cast<int>(type))->to_float;
}

/// With repetitions, what others who share the memory took least of.
double fastest(const std::vector<double>& times) {
  return *std::min_element(times.begin(), times.end());
}

template <class... Args>
void add(const std::string& name, const Args&... args) {
  benchmark::RegisterBenchmark(name.c_str(), args...)
      ->Unit(benchmark::kMillisecond)
      ->ComputeStatistics("fastest", fastest);
}

const bool kRegistered = [] {
  add("memcpy", bench_copy);
  for (const Format& format : formats()) {
    const std::string name(format.name);
    add("decode/" + name, [&](benchmark::State& s) { bench_decode(s, format, nullptr); });
    if (const ToFloat to_float = ggml_to_float(format.type)) {
      add("ggml_decode/" + name,
          [&format, to_float](benchmark::State& s) { bench_decode(s, format, to_float); });
    }
    add("fake_quantize/" + name, [&](benchmark::State& s) { bench_fake_quantize(s, format); });
    add("fake_quantize_backward/" + name, [&](benchmark::State& s) { bench_backward(s, format); });
    if (format.num_scales == 0) continue;
    for (const bool weighted : {false, true}) {
      const std::string suffix = name + (weighted ? "/weighted" : "");
      for (const auto& [label, method] : {std::pair{"ggml", EncodeMethod::kGgml},
                                          {"rtn", EncodeMethod::kRtn},
                                          {"search", EncodeMethod::kSearch}}) {
        add(std::string("encode_") + label + "/" + suffix,
            [&format, method = method, weighted](benchmark::State& s) {
              bench_encode(s, format, method, weighted);
            });
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace nibble
