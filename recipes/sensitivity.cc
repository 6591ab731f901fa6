// nibble sensitivity: what quantizing each tensor alone does to a model, for nibble quantize
// --target-bpw.
#include "eval/sensitivity.h"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <sstream>

#include "base/progress.h"
#include "quant/mix/quantize_file.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

constexpr const char* kIntroduction =
    "Measures how far the model moves (mean KLD on a text) when one tensor alone is quantized, "
    "for\n"
    "each tensor and type. nibble quantize --target-bpw and --target-size choose types by it.";

constexpr const char* kExamples =
    "\nA stopped measurement goes on where it was when it is started again with the same OUT.\n"
    "\nexamples:\n"
    "  nibble sensitivity f32.gguf text.txt -o f32.sensitivity.json\n"
    "  nibble quantize f32.gguf small.gguf --target-bpw 3.5 --sensitivity f32.sensitivity.json\n";

constexpr size_t kShown = 8;

std::vector<GgmlType> types_named(const std::string& list) {
  std::vector<GgmlType> types;
  std::istringstream names(list);
  for (std::string name; std::getline(names, name, ',');) {
    const Format* format = find_format(std::string_view(name));
    if (!format) fail_usage("--types: nibble does not encode '", name, "'");
    types.push_back(format->type);
  }
  return types;
}

/// The tensors that lose most in their smallest type, the worst first.
void print_worst(Sensitivity all) {
  const auto worst = [](const TensorSensitivity& tensor) {
    double kld = 0;
    for (const auto& [type, value] : tensor.kld) kld = std::max(kld, value);
    return kld;
  };
  std::stable_sort(all.tensors.begin(), all.tensors.end(),
                   [&](const auto& a, const auto& b) { return worst(a) > worst(b); });
  std::printf("mean KLD with one tensor quantized, the %zu that lose most:\n",
              std::min(kShown, all.tensors.size()));
  for (size_t i = 0; i < std::min(kShown, all.tensors.size()); ++i) {
    std::printf("  %-32s", all.tensors[i].tensor.c_str());
    for (const auto& [type, value] : all.tensors[i].kld)
      std::printf("  %s %.2g", std::string(type_name(type)).c_str(), value);
    std::printf("\n");
  }
}

}  // namespace

int run_sensitivity(int argc, char** argv) {
  cxxopts::Options options("nibble sensitivity", kIntroduction);
  options.positional_help("MODEL TEXT");
  const auto text = [] { return cxxopts::value<std::string>(); };
  cxxopts::OptionAdder add = options.add_options();
  add("o,output", "the file of figures, JSON", text(), "OUT");
  add("types",
      "types to measure, with commas; default: the K-quants and Q8_0, or the types of 32 "
      "and 64 weights where 256 does not divide a row",
      text(), "T,...");
  add("method", "ggml, rtn or search", text()->default_value("search"), "M");
  add("c,ctx", "tokens per chunk", cxxopts::value<int64_t>()->default_value("256"));
  add("chunks", "chunks to measure on", cxxopts::value<int64_t>()->default_value("4"));
  add("json", "print the figures, one JSON object, on stdout");
  add_device_option(options, "computes");
  options.add_options("positional")("model", "", text())("text", "", text());
  options.parse_positional({"model", "text"});
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;
  const std::string model = model_argument(*arguments, "model", "MODEL");
  const std::string sample = required(*arguments, "text", "TEXT");
  const std::string out = required(*arguments, "output", "-o OUT");
  SensitivityOptions wanted;
  wanted.text = {(*arguments)["ctx"].as<int64_t>(), (*arguments)["chunks"].as<int64_t>(),
                 device_argument(*arguments)};
  wanted.method = method_named((*arguments)["method"].as<std::string>());
  wanted.types = types_named(text_or_empty(*arguments, "types"));
  const Sensitivity all = measure_sensitivity(model, sample, wanted, out);
  if (arguments->count("json")) {
    std::cout << all.to_json();
    return 0;
  }
  print_worst(all);
  std::printf(
      "%s: %zu tensors; next: nibble quantize %s OUT.gguf --target-bpw 4 --sensitivity %s\n",
      out.c_str(), all.tensors.size(), quoted(model).c_str(), quoted(out).c_str());
  return 0;
}

}  // namespace nibble
