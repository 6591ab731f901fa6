// nibble compare: several models against one base on the same text.
#include "eval/compare.h"

#include <cstdio>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "eval/report.h"
#include "recipes/activations_argument.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

constexpr const char* kExamples =
    "\nEach figure comes with its standard error, and differences between models are paired over "
    "tokens.\nAll models need the base's vocabulary and shape.\n"
    "\nexamples:\n"
    "  nibble compare q4_0.gguf q4_k_m.gguf --base f32.gguf --text wiki.test.raw --chunks 16\n"
    "  nibble compare ptq.gguf qat.gguf --base f32.gguf --text wiki.test.raw --report page\n"
    "  nibble compare ptq.gguf qat.gguf --base f32.gguf --text wiki.test.raw --json > "
    "figures.json\n";

/// Files by their names; by their whole paths where two names are the same.
std::vector<CompareEntry> named(const std::vector<std::string>& paths) {
  std::multiset<std::string> names;
  for (const std::string& path : paths)
    names.insert(std::filesystem::path(path).filename().string());
  std::vector<CompareEntry> entries;
  for (const std::string& path : paths) {
    const std::string name = std::filesystem::path(path).filename().string();
    entries.push_back({names.count(name) > 1 ? path : name, find_model(path)});
  }
  return entries;
}

}  // namespace

int run_compare(int argc, char** argv) {
  cxxopts::Options options("nibble compare", "Several models against one base on the same text");
  options.positional_help("MODEL...")
      .add_options("positional")("models", "GGUF files",
                                 cxxopts::value<std::vector<std::string>>());
  options.add_options()("base", "GGUF file of the unquantized model",
                        cxxopts::value<std::string>())("text", "text file",
                                                       cxxopts::value<std::string>())(
      "c,ctx", "tokens per chunk", cxxopts::value<int64_t>()->default_value("512"))(
      "chunks", "chunks to measure; -1: all", cxxopts::value<int64_t>()->default_value("-1"))(
      "report", "also write a page, DIR/index.html", cxxopts::value<std::string>(), "DIR")(
      "json", "one JSON object on stdout");
  add_device_option(options, "computes");
  add_activations_option(options);
  options.parse_positional({"models"});
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;
  if (arguments->count("models") == 0) fail_usage("no MODEL given; see --help");
  const std::string base = model_argument(*arguments, "base", "--base MODEL"),
                    text = required(*arguments, "text", "--text FILE");
  const PerplexityOptions measure = {(*arguments)["ctx"].as<int64_t>(),
                                     (*arguments)["chunks"].as<int64_t>(),
                                     device_argument(*arguments), activations_argument(*arguments)};
  const Comparison comparison =
      compare({std::filesystem::path(base).filename().string(), base},
              named((*arguments)["models"].as<std::vector<std::string>>()), text, measure);
  if (arguments->count("report") > 0) {
    ReportData data;
    data.comparison = comparison;
    write_report((*arguments)["report"].as<std::string>(), data);
  }
  std::printf("%s\n", arguments->count("json") > 0 ? comparison_json(comparison).c_str()
                                                   : comparison_table(comparison).c_str());
  return 0;
}

}  // namespace nibble
