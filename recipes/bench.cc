// nibble bench: the row functions of block formats, one thread, each checked against the generic
// code before it is timed. With --training: recipes/bench_training.cc.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <cxxopts.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "quant/format/registry.h"
#include "quant/format/targets.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kIntroduction =
    "Times block formats on one thread: decoding, encoding by each method, and the forward and\n"
    "backward pass of fake quantization. Each gives the bits of the code for any processor, or "
    "fails.\n"
    "--training times training steps instead: see nibble bench --training --help.\n";
constexpr const char* kExamples =
    "\nExamples:\n"
    "  nibble bench\n"
    "  nibble bench --format Q4_0,Q2_0 --json\n";

/// Larger than the caches near a core, as a model is.
constexpr int64_t kNumWeights = int64_t{1} << 24;
/// For the encoders, which work on rows that were decoded to a second-level cache.
constexpr int64_t kNumEncoded = int64_t{1} << 17;
constexpr int64_t kRowLength = 4096;
constexpr double kSeconds = 0.2;  // of passes, at least

std::vector<float> gaussian_weights() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> weights(kNumWeights);
  for (float& weight : weights) weight = normal(random);
  return weights;
}

/// What a pass wrote.
using Written = std::array<std::span<const std::byte>, 2>;

struct Operation {
  const char* name;
  int64_t num_weights;
  std::function<Written(const Format&)> pass;
};

/// A format's blocks and room for what its functions write.
struct Buffers {
  Buffers(const Format& format, const std::vector<float>& from)
      : weights(from), num_blocks(kNumWeights / format.block_size) {
    blocks.resize(num_blocks * format.block_bytes);
    scales.resize(num_blocks * format.num_scales + 1);  // + 1: formats without scales
    grad_scales.resize(scales.size());
    out.resize(kNumWeights);
    format.encode(weights.data(), nullptr, blocks.data(), kNumWeights, EncodeMethod::kRtn);
    format.scales_of(blocks.data(), scales.data(), num_blocks);
  }

  const std::vector<float>& weights;
  int64_t num_blocks;
  std::vector<std::byte> blocks, encoded;
  std::vector<float> scales, out, grad_scales;
};

Written encode(const Format& format, EncodeMethod method, Buffers& buffers) {
  const int64_t row_bytes = kRowLength / format.block_size * format.block_bytes;
  buffers.encoded.resize(kNumEncoded / kRowLength * row_bytes);
  for (int64_t row = 0; row < kNumEncoded / kRowLength; ++row)
    format.encode(buffers.weights.data() + row * kRowLength, nullptr,
                  buffers.encoded.data() + row * row_bytes, kRowLength, method);
  return {buffers.encoded};
}

std::vector<Operation> operations(Buffers& b) {
  const auto encoding = [&b](EncodeMethod method) {
    return [&b, method](const Format& format) { return encode(format, method, b); };
  };
  return {{"decode", kNumWeights,
           [&b](const Format& format) -> Written {
             format.decode(b.blocks.data(), b.out.data(), b.num_blocks);
             return {std::as_bytes(std::span(b.out))};
           }},
          {"encode_ggml", kNumEncoded, encoding(EncodeMethod::kGgml)},
          {"encode_rtn", kNumEncoded, encoding(EncodeMethod::kRtn)},
          {"encode_search", kNumEncoded, encoding(EncodeMethod::kSearch)},
          {"fake_quantize", kNumWeights,
           [&b](const Format& format) -> Written {
             format.fake_quantize(b.weights.data(), b.scales.data(), b.out.data(), b.num_blocks);
             return {std::as_bytes(std::span(b.out))};
           }},
          {"fake_quantize_backward", kNumWeights, [&b](const Format& format) -> Written {
             format.fake_quantize_backward(b.weights.data(), b.scales.data(), b.weights.data(),
                                           b.out.data(), b.grad_scales.data(), b.num_blocks,
                                           Estimator::kRelative);
             return {std::as_bytes(std::span(b.out)), std::as_bytes(std::span(b.grad_scales))};
           }}};
}

/// What is timed must be right: the processor's code writes what the generic code writes. Warms up
/// too.
void check_operation(const Operation& operation, const Format& format) {
  const Format& generic = targets()[0].formats[&format - formats().data()];
  std::vector<std::byte> wanted;
  for (const auto bytes : operation.pass(generic))
    wanted.insert(wanted.end(), bytes.begin(), bytes.end());
  size_t at = 0;
  for (const auto bytes : operation.pass(format)) {
    check(bytes.empty() || std::memcmp(bytes.data(), wanted.data() + at, bytes.size()) == 0,
          format.name, ": ", operation.name, " differs from the generic code");
    at += bytes.size();
  }
}

/// Median seconds of a pass.
double seconds_of(const std::function<void()>& pass) {
  std::vector<double> times;
  for (double total = 0; total < kSeconds; total += times.back()) {
    const auto begin = std::chrono::steady_clock::now();
    pass();
    times.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

double copy_bytes_per_second(const std::vector<float>& weights) {
  std::vector<float> copy(weights.size());
  const size_t bytes = weights.size() * sizeof(float);
  std::memcpy(copy.data(), weights.data(), bytes);  // the pages are there when it is timed
  return 2.0 * static_cast<double>(bytes) /
         seconds_of([&] { std::memcpy(copy.data(), weights.data(), bytes); });
}

Json bench_format(const Format& format, const std::vector<float>& weights, double copy_rate) {
  Buffers buffers(format, weights);
  Json row = {{"format", format.name}, {"bpw", format.bits_per_weight()}};
  for (const Operation& operation : operations(buffers)) {
    check_operation(operation, format);
    const double seconds = seconds_of([&] { operation.pass(format); });
    row[operation.name] = static_cast<double>(operation.num_weights) / seconds;
    if (operation.name != std::string_view("decode")) continue;
    const int64_t bytes = std::ssize(buffers.blocks) + kNumWeights * int64_t{sizeof(float)};
    row["decode_copy_share"] = static_cast<double>(bytes) / seconds / copy_rate;
  }
  return row;
}

std::string target_name() {
  std::string_view widest;
  for (const Target& target : targets())
    if (target.supported) widest = target.name;
  return std::string(widest);
}

void print_table(const Json& report) {
  std::printf("million weights a second, one thread, %s code; memcpy: %.1f GB/s read and written\n",
              report["target"].get<std::string>().c_str(),
              report["copy_bytes_per_second"].get<double>() / 1e9);
  std::printf("%-6s %8s %9s %9s %9s %9s %9s %9s\n", "", "decode", "of memcpy", "ggml", "rtn",
              "search", "fake", "backward");
  for (const Json& row : report["formats"]) {
    const auto millions = [&](const char* name) { return row[name].get<double>() / 1e6; };
    std::printf("%-6s %8.0f %8.0f%% %9.1f %9.1f %9.1f %9.0f %9.0f\n",
                row["format"].get<std::string>().c_str(), millions("decode"),
                row["decode_copy_share"].get<double>() * 100, millions("encode_ggml"),
                millions("encode_rtn"), millions("encode_search"), millions("fake_quantize"),
                millions("fake_quantize_backward"));
  }
}

std::vector<const Format*> formats_named(const std::vector<std::string>& names) {
  std::vector<std::string> all;
  for (const Format& format : formats()) all.emplace_back(format.name);
  std::vector<const Format*> found;
  for (const std::string& name : names.empty() ? all : names) {
    found.push_back(find_format(name));
    if (!found.back()) fail_usage("--format: no format '", name, "'", did_you_mean(name, all));
  }
  return found;
}

}  // namespace

int run_bench(int argc, char** argv) {
  if (std::any_of(argv, argv + argc,
                  [](const char* each) { return !std::strcmp(each, "--training"); }))
    return run_bench_training(argc, argv);
  cxxopts::Options options("nibble bench", kIntroduction);
  options.custom_help("[OPTIONS]");
  options.add_options()("format", "block formats, separated by commas; all without it",
                        cxxopts::value<std::vector<std::string>>(),
                        "T")("json", "print one JSON object on stdout");
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;
  const std::vector<const Format*> chosen = formats_named(
      arguments->count("format") ? (*arguments)["format"].as<std::vector<std::string>>()
                                 : std::vector<std::string>());
  const std::vector<float> weights = gaussian_weights();
  Json report = {{"target", target_name()},
                 {"copy_bytes_per_second", copy_bytes_per_second(weights)},
                 {"formats", Json::array()}};
  Progress progress("bench", std::ssize(chosen), "formats");
  for (const Format* format : chosen) {
    report["formats"].push_back(
        bench_format(*format, weights, report["copy_bytes_per_second"].get<double>()));
    progress.update(static_cast<int64_t>(report["formats"].size()), format->name);
  }
  progress.finish();
  if (arguments->count("json"))
    std::printf("%s\n", report.dump(2).c_str());
  else
    print_table(report);
  return 0;
}

}  // namespace nibble
