// nibble train: only the training part of a configuration; nibble export makes the GGUF file of
// what it leaves.
#include <chrono>
#include <cstdio>
#include <cxxopts.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/progress.h"
#include "configs/config.h"
#include "io/atomic_file.h"
#include "io/gguf.h"
#include "model/new_model.h"
#include "quant/mix/plan.h"
#include "quant/mix/quantize_file.h"
#include "recipes/arguments.h"
#include "recipes/config_arguments.h"
#include "recipes/recipe.h"
#include "recipes/run_folder.h"
#include "recipes/run_self_text.h"
#include "training/diagnosis.h"
#include "training/train_tokenizer.h"
#include "training/trainer.h"

namespace nibble {
namespace {

constexpr const char* kIntroduction =
    "Trains the model of a configuration for its quantized type; with quant.type none, as it is. "
    "The\n"
    "run folder (output, by default runs/NAME) gets config.yaml, plan.json, metrics.jsonl,\n"
    "diagnosis.json, start.gguf (the model at step 0) and checkpoints/{last,best}.safetensors;\n"
    "with loss.teacher_top_k, teacher_cache.safetensors (the teacher's likeliest tokens, asked\n"
    "once; loss.teacher_cache names another place, for several runs). Ctrl-C (and SIGTERM) "
    "finishes the step, writes a "
    "checkpoint\n"
    "and says how to go on; a second one ends at once.\n"
    "With new_model instead of model it trains from scratch: a tokenizer is trained on data.files\n"
    "(tokenizer.model) and a llama of random weights is written (base-f32.gguf).\n"
    "Where data.files names self, the model first writes that text itself (self.jsonl).\n";
constexpr const char* kExamples =
    "\nExamples:\n"
    "  nibble train configs/smollm2_q4_0_wikitext.yaml\n"
    "  nibble train configs/smollm2_q4_0_wikitext.yaml --set optimizer.learning_rate=2e-4\n"
    "  nibble train configs/smollm2_q4_0_wikitext.yaml --resume    goes on where it was stopped\n"
    "  nibble train configs/pretrain_python_6m.yaml                a new model, from scratch\n"
    "  nibble train configs/qwen3_4b.yaml --dry-run                what it would take, before a "
    "download\n"
    "  nibble export runs/smollm2_q4_0_wikitext trained.gguf\n";

cxxopts::Options make_options() {
  cxxopts::Options options("nibble train", kIntroduction);
  options.positional_help("CONFIG.yaml");
  options.add_options("arguments")("config", "", cxxopts::value<std::string>());
  options.add_options()("set", "a setting that wins over the file's; may be repeated",
                        cxxopts::value<std::string>(), "KEY=VALUE")(
      "resume", "go on from the last checkpoint, as if never stopped")(
      "dry-run",
      "only say what it will take: the file's size, memory, steps, work; a folder with config.json "
      "is enough")("json", "the result as one JSON object on stdout");
  add_device_option(options, "trains");
  options.parse_positional({"config"});
  return options;
}

/// Trains a tokenizer on the run's text and writes a model of random weights into the run folder;
/// returns its path. A run that is gone on with keeps the one it has.
std::string make_new_model(const RunConfig& config, bool resume) {
  const std::string path = run_original_path(config.output);
  const std::string config_path = run_config_path(config.output);
  if (resume && std::filesystem::exists(path) && std::filesystem::exists(config_path)) {
    if (load_config(config_path).new_model != config.new_model)
      fail_usage("new_model: differs from that of the run in '", config.output,
                 "'; train without --resume, or in a new folder");
    return path;
  }
  create_folders(config.output);
  const uint64_t seed = config.train.seed;
  const auto start = std::chrono::steady_clock::now();
  const std::string tokenizer =
      train_tokenizer(tokenizer_sample(config.train.data, seed), config.new_model.vocab_size);
  write_file(config.output + "/tokenizer.model", tokenizer);
  write_new_model(path, config.new_model, tokenizer_metadata(tokenizer), config.name, seed);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  note("new model in ", path, ", with a tokenizer of ", config.new_model.vocab_size,
       " tokens; made in ", format_duration(seconds));
  return path;
}

void print_result(const TrainResult& result, const std::optional<Diagnosis>& diagnosis,
                  const std::string& run_dir, bool json) {
  using Json = nlohmann::ordered_json;
  if (json) {
    Json report = {{"run", run_dir},
                   {"steps", result.steps},
                   {"tokens", result.tokens},
                   {"seconds", result.seconds},
                   {"predicted_bytes", result.predicted_bytes},
                   {"peak_bytes", peak_memory_bytes()},
                   {"best_step", result.best_step},
                   {"checkpoint", result.checkpoint},
                   {"best_checkpoint", result.best_checkpoint}};
    if (diagnosis) report["diagnosis"] = Json::parse(diagnosis_json(*diagnosis));
    std::printf("%s\n", report.dump(2).c_str());
    return;
  }
  std::printf("%lld steps, %lld tokens in %s; best: step %lld\n%s\n",
              static_cast<long long>(result.steps), static_cast<long long>(result.tokens),
              format_duration(result.seconds).c_str(), static_cast<long long>(result.best_step),
              result.best_checkpoint.c_str());
  if (diagnosis) std::printf("%s\n", diagnosis_line(*diagnosis).c_str());
}

}  // namespace

int run_train(int argc, char** argv) {
  cxxopts::Options options = make_options();
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;
  RunConfig config =
      load_config(required(*arguments, "config", "CONFIG.yaml"), config_overrides(*arguments));
  config.train.device = device_argument(*arguments);
  if (forecast_instead(*arguments, config)) return 0;
  const bool resume = arguments->count("resume") > 0;
  convert_model(config, resume);
  const GgufFile source =
      GgufFile::open(config.makes_model() ? make_new_model(config, resume) : config.model);
  const Plan plan = run_plan(config, source);
  if (config.init_file().empty()) check_encodable(plan);
  const bool has_text = has_self_text(config, resume);
  start_run_folder(config.output, config_yaml(config), plan.to_json(), resume);
  make_self_text(config.train, config.self, source, config.output, has_text);
  const TrainResult result = train(source, plan, config.train, config.output, resume);
  if (!result.complete)
    fail("stopped after step ", result.steps, "; go on with: ", resume_command(argc, argv));
  if (resume && result.metrics.empty())
    note(config.output, " holds the finished run: there was nothing left to do");
  const auto diagnosis = diagnose_run(source, config.train, config.output, result);
  print_result(result, diagnosis, config.output, arguments->count("json") > 0);
  return 0;
}

}  // namespace nibble
