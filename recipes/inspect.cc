// nibble inspect: what a GGUF file holds: metadata, tensors, types, bits per weight, bytes per
// type; of one tensor, what its codes and scales are.
#include <algorithm>
#include <cstdio>
#include <map>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "io/gguf.h"
#include "quant/format/registry.h"
#include "quant/format/statistics.h"
#include "recipes/arguments.h"
#include "recipes/gguf_text.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

constexpr const char* kExamples =
    "\nOf long metadata arrays the length and the first elements are shown; --json gives the "
    "same.\n"
    "\nOf one tensor (--tensor) the weights are decoded: their mean, standard deviation and\n"
    "range, how often each code occurs (the q of w = d * q or w = d * t * q; a codebook's level),\n"
    "and how the steps between levels (|d|, |d * t|) are spread, four bins to a factor of 2.\n"
    "\nexamples:\n"
    "  nibble inspect model.gguf                            everything, for a person\n"
    "  nibble inspect model.gguf --tensor blk.0.attn_q.weight\n"
    "  nibble inspect model.gguf --json | jq .types         bytes per type\n"
    "  nibble inspect model.gguf --tensor output.weight --json | jq .statistics.zero_codes\n";
constexpr int kBarLength = 40;

// What tensors of one type amount to.
struct TypeSummary {
  int64_t tensors = 0, weights = 0, bytes = 0;
};

Json json_of(const GgufTensor& tensor) {
  const auto bytes = static_cast<int64_t>(tensor.data.size());
  Json json = {{"name", tensor.name},
               {"type", type_name(tensor.type)},
               {"shape", tensor.shape},
               {"weights", tensor.num_weights()},
               {"bytes", bytes},
               {"bpw", bits_per_weight(bytes, tensor.num_weights())},
               {"offset", tensor.file_offset}};
  if (tensor.part > 0) json["part"] = tensor.part;
  return json;
}

std::map<GgmlType, TypeSummary> summarize(const GgufFile& file) {
  std::map<GgmlType, TypeSummary> types;
  for (const GgufTensor& tensor : file.tensors()) {
    TypeSummary& type = types[tensor.type];
    type.tensors += 1;
    type.weights += tensor.num_weights();
    type.bytes += static_cast<int64_t>(tensor.data.size());
  }
  return types;
}

TypeSummary total_of(const std::map<GgmlType, TypeSummary>& types) {
  TypeSummary total;
  for (const auto& [type, summary] : types) {
    total.tensors += summary.tensors;
    total.weights += summary.weights;
    total.bytes += summary.bytes;
  }
  return total;
}

Json json_of(const GgufFile& file) {
  const auto types = summarize(file);
  const TypeSummary total = total_of(types);
  Json json = {{"path", file.path()},        {"version", file.version()},
               {"bytes", file.file_bytes()}, {"tensor_bytes", total.bytes},
               {"weights", total.weights},   {"bpw", bits_per_weight(total.bytes, total.weights)}};
  json["types"] = Json::array();
  for (const auto& [type, summary] : types)
    json["types"].push_back({{"type", type_name(type)},
                             {"tensors", summary.tensors},
                             {"weights", summary.weights},
                             {"bytes", summary.bytes},
                             {"share", share(summary.bytes, total.bytes)}});
  json["metadata"] = Json::object();
  for (const auto& [key, value] : file.metadata().pairs()) json["metadata"][key] = json_of(value);
  json["tensors"] = Json::array();
  for (const GgufTensor& tensor : file.tensors()) json["tensors"].push_back(json_of(tensor));
  return json;
}

void print_metadata(const GgufFile& file) {
  for (const auto& [key, value] : file.metadata().pairs())
    std::printf("  %-42s %s\n", key.c_str(), short_text(value).c_str());
}

void print_tensor(const GgufTensor& tensor) {
  const auto bytes = static_cast<int64_t>(tensor.data.size());
  std::printf("  %-36s %-8s %-18s %12s %7.3f\n", tensor.name.c_str(),
              std::string(type_name(tensor.type)).c_str(), shape_text(tensor).c_str(),
              format_bytes(bytes).c_str(), bits_per_weight(bytes, tensor.num_weights()));
}

void print_file(const GgufFile& file) {
  const auto types = summarize(file);
  const TypeSummary total = total_of(types);
  std::printf("%s: GGUF v%u, %s, %lld tensors, %lld weights, %.3f bits per weight\n",
              file.path().c_str(), file.version(), format_bytes(file.file_bytes()).c_str(),
              static_cast<long long>(total.tensors), static_cast<long long>(total.weights),
              bits_per_weight(total.bytes, total.weights));
  std::printf("\nmetadata\n");
  print_metadata(file);
  std::printf("\n  %-36s %-8s %-18s %12s %7s\n", "tensor", "type", "shape", "size", "bpw");
  for (const GgufTensor& tensor : file.tensors()) print_tensor(tensor);
  std::printf("\n  %-8s %8s %16s %12s %8s\n", "type", "tensors", "weights", "size", "share");
  for (const auto& [type, summary] : types)
    std::printf("  %-8s %8lld %16lld %12s %7.1f%%\n", std::string(type_name(type)).c_str(),
                static_cast<long long>(summary.tensors), static_cast<long long>(summary.weights),
                format_bytes(summary.bytes).c_str(), 100.0 * share(summary.bytes, total.bytes));
}

const GgufTensor& find_or_fail(const GgufFile& file, const std::string& name) {
  if (const GgufTensor* tensor = file.find_tensor(name)) return *tensor;
  fail(file.path(), ": no tensor '", name, "'", did_you_mean(name, tensor_names(file)));
}

int64_t sum_of(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

Json json_of(const TensorStatistics& statistics) {
  const int64_t finite = statistics.num_weights - statistics.num_not_finite;
  Json json = {{"mean", statistics.mean()},
               {"std", statistics.standard_deviation()},
               {"min", finite ? Json(statistics.min) : Json()},
               {"max", finite ? Json(statistics.max) : Json()},
               {"not_finite", statistics.num_not_finite},
               {"zero_weights", share(statistics.num_zero, statistics.num_weights)}};
  const int64_t num_codes = sum_of(statistics.codes);
  if (num_codes == 0) return json;
  json["zero_codes"] = share(statistics.codes[128], num_codes);
  json["codes"] = Json::array();
  for (int code = -128; code < 128; ++code) {
    if (const int64_t count = statistics.codes[code + 128])
      json["codes"].push_back({{"code", code}, {"count", count}});
  }
  json["steps"] = Json::array();
  for (int bin = 0; bin < kFirstInfiniteStepBin; ++bin) {
    if (const int64_t count = statistics.steps[bin])
      json["steps"].push_back({{"from", step_bin_start(bin)}, {"count", count}});
  }
  json["steps_not_finite"] = sum_of(std::span(statistics.steps).subspan(kFirstInfiniteStepBin));
  return json;
}

/// A row of a histogram; the longest bar stands for `largest`.
void print_bar(const std::string& label, int64_t count, int64_t total, int64_t largest) {
  const auto length = static_cast<size_t>((kBarLength * count + largest - 1) / largest);
  std::printf("  %12s %8.3f %%  %s\n", label.c_str(), 100.0 * share(count, total),
              std::string(length, '#').c_str());
}

void print_codes(const TensorStatistics& statistics) {
  const int64_t total = sum_of(statistics.codes);
  const int64_t largest = *std::max_element(statistics.codes.begin(), statistics.codes.end());
  std::printf("\n  %12s %10s   %.3f %% of the codes are 0\n", "code", "share",
              100.0 * share(statistics.codes[128], total));
  for (int code = -128; code < 128; ++code) {
    if (const int64_t count = statistics.codes[code + 128])
      print_bar(concat(code), count, total, largest);
  }
}

void print_steps(const TensorStatistics& statistics, int64_t group_size) {
  const int64_t total = sum_of(statistics.steps);
  const int64_t largest = *std::max_element(statistics.steps.begin(), statistics.steps.end());
  std::printf("\n  %12s %10s   %lld steps, one for each %lld weights\n", "step from", "share",
              static_cast<long long>(total), static_cast<long long>(group_size));
  for (int bin = 0; bin < kFirstInfiniteStepBin; ++bin) {
    if (const int64_t count = statistics.steps[bin])
      print_bar(concat(step_bin_start(bin)), count, total, largest);
  }
  const int64_t infinite = sum_of(std::span(statistics.steps).subspan(kFirstInfiniteStepBin));
  if (infinite) print_bar("not finite", infinite, total, largest);
}

void print_statistics(const TensorStatistics& statistics, int64_t group_size) {
  if (statistics.num_not_finite < statistics.num_weights)
    std::printf("  mean %.6g, standard deviation %.6g, from %.6g to %.6g; %.3f %% are 0\n",
                statistics.mean(), statistics.standard_deviation(), statistics.min, statistics.max,
                100.0 * share(statistics.num_zero, statistics.num_weights));
  if (statistics.num_not_finite)
    std::printf("  %lld weights are NaN or infinite\n",
                static_cast<long long>(statistics.num_not_finite));
  if (sum_of(statistics.codes) == 0) return;
  print_codes(statistics);
  print_steps(statistics, group_size);
}

/// Without statistics where nibble does not decode the type.
void show_tensor(const GgufTensor& tensor, bool as_json) {
  const Format* format = find_decoder(tensor.type);
  if (!as_json) {
    print_tensor(tensor);
    if (format) print_statistics(statistics_of(tensor), format->group_size);
    return;
  }
  Json json = json_of(tensor);
  if (format) json["statistics"] = json_of(statistics_of(tensor));
  std::printf("%s\n", text_of(json, 2).c_str());
}

}  // namespace

int run_inspect(int argc, char** argv) {
  cxxopts::Options options(
      "nibble inspect",
      "What a GGUF file holds: metadata, tensors, types, bits per weight, bytes per type.");
  options.positional_help("FILE.gguf");
  options.add_options("arguments")("file", "", cxxopts::value<std::string>());
  options.add_options()("tensor", "only this tensor, and what its codes and scales are",
                        cxxopts::value<std::string>(), "NAME");
  options.add_options()("json", "one JSON object on stdout");
  options.parse_positional({"file"});
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;

  const bool as_json = arguments->count("json") > 0;
  const GgufFile file = GgufFile::open(model_argument(*arguments, "file", "FILE.gguf"));
  if (arguments->count("tensor") > 0) {
    show_tensor(find_or_fail(file, (*arguments)["tensor"].as<std::string>()), as_json);
  } else if (as_json) {
    std::printf("%s\n", text_of(json_of(file), 2).c_str());
  } else {
    print_file(file);
  }
  return 0;
}

}  // namespace nibble
