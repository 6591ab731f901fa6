// nibble train: only the training part of a configuration; nibble export makes the GGUF file of
// what it leaves.
#include <cstdio>
#include <cxxopts.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/progress.h"
#include "configs/config.h"
#include "io/gguf.h"
#include "quant/mix/plan.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"
#include "recipes/run_folder.h"
#include "training/trainer.h"

namespace nibble {
namespace {

constexpr const char* kIntroduction =
    "Trains the model of a configuration for its quantized type; with quant.type none, as it is. "
    "The\n"
    "run folder (output, by default runs/NAME) gets config.yaml, plan.json, metrics.jsonl and\n"
    "checkpoints/{last,best}.safetensors. Ctrl-C (and SIGTERM) finishes the step, writes a "
    "checkpoint\n"
    "and says how to go on; a second one ends at once.\n";
constexpr const char* kExamples =
    "\nExamples:\n"
    "  nibble train configs/smollm2_q4_0_wikitext.yaml\n"
    "  nibble train configs/smollm2_q4_0_wikitext.yaml --set optimizer.learning_rate=2e-4\n"
    "  nibble train configs/smollm2_q4_0_wikitext.yaml --resume    goes on where it was stopped\n"
    "  nibble export runs/smollm2_q4_0_wikitext trained.gguf\n";

cxxopts::Options make_options() {
  cxxopts::Options options("nibble train", kIntroduction);
  options.positional_help("CONFIG.yaml");
  options.add_options("arguments")("config", "", cxxopts::value<std::string>());
  options.add_options()("set", "a setting that wins over the file's; may be repeated",
                        cxxopts::value<std::string>(), "KEY=VALUE")(
      "resume", "go on from the last checkpoint, as if never stopped")(
      "json", "the result as one JSON object on stdout");
  options.parse_positional({"config"});
  return options;
}

Plan plan_for(const GgufFile& source, const std::string& type) {
  PlanOptions options;
  options.type_name = type == "none" ? "F32" : type;
  options.allow_requantize = true;  // of a source that is decoded; the model itself is float32
  return make_plan(source, options);
}

void print_result(const TrainResult& result, const std::string& run_dir, bool json) {
  if (json) {
    const nlohmann::ordered_json report = {{"run", run_dir},
                                           {"steps", result.steps},
                                           {"tokens", result.tokens},
                                           {"seconds", result.seconds},
                                           {"predicted_bytes", result.predicted_bytes},
                                           {"peak_bytes", peak_memory_bytes()},
                                           {"best_step", result.best_step},
                                           {"checkpoint", result.checkpoint},
                                           {"best_checkpoint", result.best_checkpoint}};
    std::printf("%s\n", report.dump(2).c_str());
    return;
  }
  std::printf("%lld steps, %lld tokens in %s; best: step %lld\n%s\n",
              static_cast<long long>(result.steps), static_cast<long long>(result.tokens),
              format_duration(result.seconds).c_str(), static_cast<long long>(result.best_step),
              result.best_checkpoint.c_str());
}

}  // namespace

int run_train(int argc, char** argv) {
  cxxopts::Options options = make_options();
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;
  // Read one by one: a list option of cxxopts would cut values at their commas.
  std::vector<ConfigOverride> overrides;
  for (const cxxopts::KeyValue& argument : arguments->arguments())
    if (argument.key() == "set") overrides.push_back(argument.value());
  const RunConfig config = load_config(required(*arguments, "config", "CONFIG.yaml"), overrides);

  const GgufFile source = GgufFile::open(config.model);
  const Plan plan = plan_for(source, config.train.quant.type);
  const bool resume = arguments->count("resume") > 0;
  start_run_folder(config.output, config_yaml(config), plan.to_json(), resume);
  const TrainResult result = train(source, plan, config.train, config.output, resume);
  if (!result.complete)
    fail("stopped after step ", result.steps, "; go on with: ", resume_command(argc, argv));
  if (resume && result.metrics.empty())
    note(config.output, " holds the finished run: there was nothing left to do");
  print_result(result, config.output, arguments->count("json") > 0);
  return 0;
}

}  // namespace nibble
