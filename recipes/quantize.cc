// nibble quantize: post-training quantization of a GGUF file, with llama-quantize's rules and
// flags.
#include <cstdio>
#include <cxxopts.hpp>
#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/threads.h"
#include "quant/mix/plan.h"
#include "quant/mix/quantize_file.h"
#include "recipes/arguments.h"
#include "recipes/byte_budget.h"
#include "recipes/quantize_imatrix.h"
#include "recipes/quantize_plan.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

constexpr const char* kIntroduction =
    "Quantizes a GGUF file. Which tensor gets which type follows llama-quantize's rules; how the\n"
    "numbers are chosen is the method:\n"
    "  search  the scales with the lowest squared error that it finds, at most ggml's (default)\n"
    "  ggml    llama-quantize's own choice, byte for byte\n"
    "  rtn     scales from each block's range, codes by rounding to nearest\n";

constexpr const char* kExamples =
    "\nExamples:\n"
    "  nibble quantize f32.gguf q4_0.gguf Q4_0\n"
    "  nibble quantize f32.gguf q4_0.gguf Q4_0 --method ggml             llama-quantize's bytes\n"
    "  nibble quantize f32.gguf q4_0.gguf Q4_0 --tensor-type attn_v=q8_0\n"
    "  nibble quantize f32.gguf Q4_K_M                                   to "
    "ggml-model-Q4_K_M.gguf\n"
    "  nibble quantize f32.gguf q4_0.gguf Q4_0 --imatrix imatrix.gguf    important columns first\n"
    "  nibble quantize f32.gguf q4_0.gguf Q4_0 --dry-run                 the plan only\n"
    "  nibble quantize f32.gguf small.gguf --target-bpw 3.5 --sensitivity f32.sensitivity.json\n";

cxxopts::Options make_options() {
  const auto text = [] { return cxxopts::value<std::string>(); };
  cxxopts::Options options("nibble quantize", kIntroduction);
  options.custom_help("[OPTIONS]").positional_help("IN.gguf [OUT.gguf] TYPE [THREADS]");
  cxxopts::OptionAdder add = options.add_options();
  add("method", "ggml, rtn or search", text()->default_value("search"), "M");
  add_plan_options(options);
  add_byte_budget_options(options);
  add_imatrix_options(options);
  add("dry-run", "print the plan and the size, write nothing");
  add("json", "print one JSON object on stdout");
  add("q,quiet", "no progress bar and no notes");
  add_device_option(options, "encodes, to the same bytes");
  add_quantize_words(options);
  return options;
}

std::string examples() {
  std::string types;
  for (const std::string& name : plan_type_names()) types += (types.empty() ? "" : ", ") + name;
  return "\nTYPE: " + types +
         ",\nthe number of one (general.file_type), or COPY: every tensor as it is\n" + kExamples;
}

/// "210 Q4_0, 61 F32, 1 Q8_0", the most frequent first.
std::string count_types(const Plan& plan) {
  std::map<std::string_view, int64_t> counts;
  for (const PlanEntry& entry : plan.entries) ++counts[type_name(entry.target)];
  std::vector<std::pair<std::string_view, int64_t>> sorted(counts.begin(), counts.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string text;
  for (const auto& [name, count] : sorted)
    text += concat(text.empty() ? "" : ", ", count, " ", name);
  return text;
}

void print_plan(const Plan& plan) {
  for (const PlanEntry& entry : plan.entries)
    std::cout << concat(entry.tensor, "  ", type_name(entry.source), " -> ",
                        type_name(entry.target), "  (", entry.reason, ")\n");
  std::cout << concat(count_types(plan), "; ", format_bytes(plan.total_bytes()),
                      " of tensor data\n");
}

void print_stats(const std::string& path, const Plan& plan, const QuantizeStats& stats) {
  char numbers[96];
  std::snprintf(numbers, sizeof numbers, "%.2f bits per weight, %.1f s", stats.bits_per_weight(),
                stats.seconds);
  std::cout << concat(path, ": ", plan.type_name, ", ", format_bytes(stats.bytes),
                      " of tensor data, ", numbers, " (", count_types(plan), ")\n");
}

std::string stats_json(const std::string& path, const Plan& plan, EncodeMethod method,
                       const QuantizeStats& stats) {
  const nlohmann::ordered_json json = {{"name", path},
                                       {"type", plan.type_name},
                                       {"method", method_name(method)},
                                       {"bytes", stats.bytes},
                                       {"source_bytes", stats.source_bytes},
                                       {"bpw", stats.bits_per_weight()},
                                       {"weights", stats.num_weights},
                                       {"tensors", stats.num_tensors},
                                       {"converted", stats.num_converted},
                                       {"seconds", stats.seconds}};
  return json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

/// A dry run does not stop at what quantizing would stop at, but tells of it.
void warn_of_refusal(const Plan& plan) {
  try {
    check_encodable(plan);
  } catch (const Error& error) {
    warn("without --dry-run this plan is refused: ", error.what());
  }
}

void check_writes_elsewhere(const GgufFile& source, const Plan& plan, const std::string& out) {
  std::error_code missing;
  for (const std::string& path : quantized_paths(source, plan, out))
    if (std::filesystem::equivalent(source.path(), path, missing))
      fail_usage(source.path(), ": IN and OUT are the same file");
}

}  // namespace

int run_quantize(int argc, char** argv) {
  cxxopts::Options options = make_options();
  const auto arguments = parse_arguments(options, argc, argv, examples());
  if (!arguments) return 0;
  const bool by_budget = has_byte_budget(*arguments);
  const QuantizeWords words = quantize_words(*arguments, by_budget);
  PlanOptions choices = plan_options(*arguments, words.type);
  const EncodeMethod method = method_named((*arguments)["method"].as<std::string>());
  const Device device = device_argument(*arguments);
  const bool json = arguments->count("json"), quiet = arguments->count("quiet");
  set_quiet_log(quiet);
  Progress::set_quiet(quiet);
  if (words.threads.value_or(0) > 0) set_num_threads(*words.threads);

  const GgufFile source = GgufFile::open(words.in);
  const std::optional<Imatrix> imatrix = imatrix_argument(*arguments, method);
  choices.has_imatrix = imatrix.has_value();
  const Plan plan =
      by_budget ? byte_budget_plan(*arguments, source, choices) : make_plan(source, choices);
  const bool dry_run = arguments->count("dry-run");
  if (dry_run || imatrix) print_importance_notes(plan, imatrix);
  if (dry_run) {
    json ? void(std::cout << plan.to_json()) : print_plan(plan);
    warn_of_refusal(plan);
    return 0;
  }
  check_writes_elsewhere(source, plan, words.out);
  if (method == EncodeMethod::kSearch)
    note(
        "method search: at most llama-quantize's error, so not its bytes; --method ggml writes "
        "those");
  const QuantizeStats stats =
      quantize_file(source, plan, method, words.out, device, imatrix ? &*imatrix : nullptr);
  json ? void(std::cout << stats_json(words.out, plan, method, stats))
       : print_stats(words.out, plan, stats);
  return 0;
}

}  // namespace nibble
