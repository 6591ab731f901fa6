// nibble quantize: post-training quantization of a GGUF file, with llama-quantize's rules and
// flags.
#include "recipes/quantize.h"

#include <cxxopts.hpp>
#include <filesystem>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/threads.h"
#include "io/atomic_file.h"
#include "quant/mix/plan.h"
#include "quant/mix/quantize_file.h"
#include "recipes/arguments.h"
#include "recipes/byte_budget.h"
#include "recipes/quantize_imatrix.h"
#include "recipes/quantize_plan.h"
#include "recipes/quantize_report.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

constexpr const char* kIntroduction =
    "Quantizes a GGUF file. Which tensor gets which type follows llama-quantize's rules; how the\n"
    "numbers are chosen is the method:\n"
    "  search  the scales with the lowest squared error that it finds, at most ggml's (default)\n"
    "  ggml    llama-quantize's own choice, byte for byte\n"
    "  rtn     scales from each block's range, codes by rounding to nearest\n"
    "and, looking at a text's activations (--calibration):\n"
    "  gptq    codes that make good for each other's errors, then scales fitted to them\n"
    "  awq     channels scaled so that those with large activations lose least, then search\n"
    "  blockwise   each block trained to give what the unquantized one gives: takes minutes\n";

constexpr const char* kExamples =
    "\nExamples:\n"
    "  nibble quantize f32.gguf q4_0.gguf Q4_0\n"
    "  nibble quantize f32.gguf q4_0.gguf Q4_0 --method ggml             llama-quantize's bytes\n"
    "  nibble quantize f32.gguf q4_0.gguf Q4_0 --tensor-type attn_v=q8_0\n"
    "  nibble quantize f32.gguf Q4_K_M                                   to "
    "ggml-model-Q4_K_M.gguf\n"
    "  nibble quantize f32.gguf q4_0.gguf Q4_0 --imatrix imatrix.gguf    important columns first\n"
    "  nibble quantize f32.gguf q4_0.gguf Q4_0 --method gptq --calibration text.txt\n"
    "  nibble quantize f32.gguf q4_0.gguf Q4_0 --dry-run                 the plan only\n"
    "  nibble quantize tiny-f32.gguf out --types Q2_K,Q4_0               reads once, writes\n"
    "                                                 out/tiny-Q2_K.gguf and out/tiny-Q4_0.gguf\n"
    "  nibble quantize f32.gguf small.gguf --target-bpw 3.5 --sensitivity f32.sensitivity.json\n";

cxxopts::Options make_options() {
  cxxopts::Options options("nibble quantize", kIntroduction);
  options.custom_help("[OPTIONS]")
      .positional_help(
          "IN.gguf [OUT.gguf] TYPE [THREADS]\n"
          "  nibble quantize [OPTIONS] IN.gguf OUT_DIR --types TYPE,TYPE,... [THREADS]");
  cxxopts::OptionAdder add = options.add_options();
  add_method_options(options);
  add_plan_options(options);
  add_byte_budget_options(options);
  add_imatrix_options(options);
  add("dry-run", "print the plan and the size, write nothing");
  add("json", "print one JSON object on stdout, with --types a list of them");
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

/// A plan for each file that the words name.
std::vector<QuantizeOutput> planned_outputs(const cxxopts::ParseResult& arguments,
                                            const QuantizeWords& words, const GgufFile& source,
                                            PlanOptions options) {
  std::vector<QuantizeOutput> outputs;
  for (const auto& [type, path] : words.files) {
    options.type_name = type;
    outputs.push_back(
        {type.empty() ? byte_budget_plan(arguments, source, options) : make_plan(source, options),
         path, nullptr});
  }
  return outputs;
}

void check_writes_elsewhere(const GgufFile& source, std::span<const QuantizeOutput> outputs) {
  std::error_code missing;
  for (const QuantizeOutput& output : outputs)
    for (const std::string& path : quantized_paths(source, output.plan, output.path))
      if (std::filesystem::equivalent(source.path(), path, missing))
        fail_usage(source.path(), ": IN and OUT are the same file");
}

}  // namespace

std::optional<QuantizeJob> quantize_job(int argc, char** argv) {
  cxxopts::Options options = make_options();
  const auto arguments = parse_arguments(options, argc, argv, examples());
  if (!arguments) return std::nullopt;
  const QuantizeWords words = quantize_words(*arguments, has_byte_budget(*arguments));
  PlanOptions choices = plan_options(*arguments);
  auto calibration = calibration_arguments(*arguments);
  const std::string method = (*arguments)["method"].as<std::string>();
  const Device device = device_argument(*arguments);
  const QuantizeReport report{arguments->count("json") > 0, !words.folder.empty()};
  const bool quiet = arguments->count("quiet"), dry_run = arguments->count("dry-run");
  set_quiet_log(quiet);
  Progress::set_quiet(quiet);
  if (words.threads.value_or(0) > 0) set_num_threads(*words.threads);

  GgufFile source = GgufFile::open(find_model(words.in));
  std::optional<Imatrix> imatrix;
  if (!calibration) imatrix = imatrix_argument(*arguments, method_named(method));
  choices.has_imatrix = imatrix.has_value();
  std::vector<QuantizeOutput> outputs = planned_outputs(*arguments, words, source, choices);
  if (dry_run || imatrix) print_importance_notes(outputs, imatrix);
  if (dry_run) {
    print_plans(outputs, report);
    return std::nullopt;
  }
  check_writes_elsewhere(source, outputs);
  check_quantizable(source, outputs, imatrix ? &*imatrix : nullptr);
  if (!words.folder.empty()) create_folders(words.folder);
  return QuantizeJob{std::move(source),  std::move(outputs),     method, device,
                     std::move(imatrix), std::move(calibration), report};
}

int run_quantize(int argc, char** argv) {
  const std::optional<QuantizeJob> job = quantize_job(argc, argv);
  if (!job) return 0;
  if (job->calibration) return run_quantize_calibrated(argc, argv);
  const EncodeMethod method = method_named(job->method);
  if (method == EncodeMethod::kSearch)
    note(
        "method search: at most llama-quantize's error, so not its bytes; --method ggml writes "
        "those");
  const auto stats = quantize_files(job->source, job->outputs, method, job->device,
                                    job->imatrix ? &*job->imatrix : nullptr);
  print_stats(job->outputs, stats, job->method, job->report);
  return 0;
}

}  // namespace nibble
