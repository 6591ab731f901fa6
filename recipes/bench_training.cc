// nibble bench --training: what quantization adds to a training step. The same step, quantized with
// learned scales and not, in turns in one run, so that a busy machine slows both alike.
#include <algorithm>
#include <cstdio>
#include <cxxopts.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "model/model.h"
#include "quant/fake/torch_device.h"
#include "quant/format/rows.h"
#include "quant/mix/plan.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"
#include "training/learner.h"
#include "training/memory.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kIntroduction =
    "Times a quantization-aware training step (KL distillation, learned scales) against the same "
    "step\n"
    "without quantization.\n";
constexpr const char* kExamples =
    "\nExample:\n  nibble bench --training --model models/SmolLM2-135M-Instruct.Q4_1.gguf --type "
    "Q4_0\n";

struct Part {
  const char* name;
  double StepTimes::*seconds;
};
constexpr Part kParts[] = {{"teacher", &StepTimes::teacher},
                           {"forward", &StepTimes::forward},
                           {"loss", &StepTimes::loss},
                           {"backward", &StepTimes::backward},
                           {"quant_backward", &StepTimes::quant_backward},
                           {"optimizer", &StepTimes::optimizer},
                           {"materialize", &StepTimes::materialize}};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

double median_of(const std::vector<StepTimes>& steps, double StepTimes::*seconds) {
  std::vector<double> values;
  for (const StepTimes& step : steps) values.push_back(step.*seconds);
  return median(values);
}

double median_total(const std::vector<StepTimes>& steps) {
  std::vector<double> values;
  for (const StepTimes& step : steps) values.push_back(step.total());
  return median(values);
}

/// A model in training, with what it needs.
struct Contestant {
  Student student;
  Learner learner;
  std::vector<StepTimes> steps;

  Contestant(std::unique_ptr<Model> model, Model* teacher, const Plan& plan,
             const TrainOptions& options)
      : student(std::move(model), &plan, options.quant), learner(student, teacher, options) {}
};

/// What is timed must be right: every W^ is what its blocks decode to.
void verify(const Student& student) {
  for (const TrainedTensor& tensor : student.tensors()) {
    if (tensor.type == GgmlType::kF32) continue;
    torch::Tensor decoded = torch::empty(tensor.weights.sizes(), torch::kFloat32);
    decode_tensor(tensor.type, restore_quantizer(tensor).blocks(),
                  {decoded.mutable_data_ptr<float>(), static_cast<size_t>(decoded.numel())});
    check(content_hash(decoded) == tensor.materialized_hash, "tensor '", tensor.name,
          "': W^ differs from what its blocks decode to");
  }
}

/// `tokens` random tokens in sequences of `length`: the time of a step does not depend on what they
/// are.
std::vector<Batch> random_batches(int64_t tokens, int64_t length, int64_t micro_batch_tokens,
                                  int64_t vocab) {
  torch::manual_seed(1);
  std::vector<Batch> batches;
  for (int64_t left = tokens; left > 0; left -= micro_batch_tokens)
    batches.push_back({torch::randint(vocab, {std::min(left, micro_batch_tokens) / length, length},
                                      torch::kInt64),
                       {}});
  return batches;
}

Json part_times(const std::vector<StepTimes>& steps) {
  Json parts;
  for (const Part& part : kParts) parts[part.name] = median_of(steps, part.seconds);
  return parts;
}

void print_table(const Json& report) {
  const Json &quantized = report["quantized"], &plain = report["unquantized"];
  std::printf("%-16s %12s %12s\n", "seconds a step", report["type"].get<std::string>().c_str(),
              "none");
  for (const Part& part : kParts)
    std::printf("%-16s %12.4f %12.4f\n", part.name, quantized["parts"][part.name].get<double>(),
                plain["parts"][part.name].get<double>());
  std::printf("%-16s %12.4f %12.4f\n", "all", quantized["seconds"].get<double>(),
              plain["seconds"].get<double>());
  std::printf("%-16s %12.1f %12.1f\n", "tokens/s", quantized["tokens_per_second"].get<double>(),
              plain["tokens_per_second"].get<double>());
  std::printf("ratio %.3f (medians of %d steps each, %d tokens a step)\n",
              report["ratio"].get<double>(), report["steps"].get<int>(),
              report["tokens"].get<int>());
}

Json contestant_json(const Contestant& contestant, int64_t tokens) {
  const double seconds = median_total(contestant.steps);
  return {{"seconds", seconds},
          {"tokens_per_second", static_cast<double>(tokens) / seconds},
          {"parts", part_times(contestant.steps)}};
}

cxxopts::Options make_options() {
  cxxopts::Options options("nibble bench", kIntroduction);
  options.custom_help("--training --model MODEL.gguf [OPTIONS]");
  options.add_options()("training", "time training steps")("m,model", "GGUF file",
                                                           cxxopts::value<std::string>(), "FILE")(
      "type", "type to train for", cxxopts::value<std::string>()->default_value("Q4_0"), "T")(
      "scales", "learned, dynamic or frozen",
      cxxopts::value<std::string>()->default_value("learned"),
      "MODE")("tokens", "tokens a step", cxxopts::value<int64_t>()->default_value("1024"), "N")(
      "micro-batch", "tokens a micro-batch", cxxopts::value<int64_t>()->default_value("1024"), "N")(
      "sequence", "tokens a sequence", cxxopts::value<int64_t>()->default_value("512"), "N")(
      "steps", "timed steps of each", cxxopts::value<int64_t>()->default_value("7"), "N")(
      "dtype", "auto, float32 or bfloat16", cxxopts::value<std::string>()->default_value("float32"),
      "D")("json", "print one JSON object on stdout");
  add_device_option(options, "trains");
  return options;
}

TrainOptions train_options(const cxxopts::ParseResult& arguments) {
  TrainOptions options;
  options.quant.type = arguments["type"].as<std::string>();
  options.quant.scales = arguments["scales"].as<std::string>();
  options.quant.initial = "rtn";  // where scales start does not change the time of a step
  options.batch_tokens = arguments["tokens"].as<int64_t>();
  options.micro_batch_tokens = arguments["micro-batch"].as<int64_t>();
  options.data.sequence_length = arguments["sequence"].as<int64_t>();
  options.dtype = arguments["dtype"].as<std::string>();
  options.device = device_argument(arguments);
  const int64_t length = options.data.sequence_length;
  if (length < 2 || options.batch_tokens < length || options.batch_tokens % length ||
      options.micro_batch_tokens < length || options.micro_batch_tokens % length)
    fail_usage("--tokens ", options.batch_tokens, " and --micro-batch ", options.micro_batch_tokens,
               " must be multiples of --sequence ", length);
  return options;
}

Json bench_training(const std::string& path, const TrainOptions& options, int64_t steps) {
  keep_freed_memory();  // as in training
  const GgufFile file = GgufFile::open(path);
  PlanOptions plan_options;
  plan_options.type_name = options.quant.type;
  plan_options.allow_requantize = true;
  const Plan plan = make_plan(file, plan_options);
  const std::unique_ptr<Model> teacher = load_model(file, torch_device(options.device));
  // Both before the first learner, which may cast the teacher's matrices.
  std::unique_ptr<Model> first = copy_model(*teacher), second = copy_model(*teacher);
  Contestant quantized(std::move(first), teacher.get(), plan, options);
  TrainOptions plain_options = options;
  plain_options.quant.type = "none";
  Contestant plain(std::move(second), teacher.get(), plan, plain_options);
  verify(quantized.student);

  const std::vector<Batch> batches =
      random_batches(options.batch_tokens, options.data.sequence_length, options.micro_batch_tokens,
                     teacher->shape().vocab_size);
  Progress progress("training steps", 2 * (steps + 1), "steps");
  for (int64_t step = 0; step <= steps; ++step)
    for (Contestant* contestant : {&quantized, &plain}) {
      const StepResult result = contestant->learner.step(batches, /*rate_factor=*/1e-3);
      if (step > 0) contestant->steps.push_back(result.times);  // the first one warms up
      progress.update(2 * step + 1 + (contestant == &plain));
    }
  progress.finish();
  verify(quantized.student);
  return {{"model", path},
          {"type", plan.type_name},
          {"device", device_name(options.device)},
          {"scales", options.quant.scales},
          {"tokens", options.batch_tokens},
          {"steps", steps},
          {"quantized", contestant_json(quantized, options.batch_tokens)},
          {"unquantized", contestant_json(plain, options.batch_tokens)},
          {"ratio", median_total(quantized.steps) / median_total(plain.steps)}};
}

}  // namespace

int run_bench_training(int argc, char** argv) {
  cxxopts::Options options = make_options();
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;
  if (!arguments->count("model")) fail_usage("no --model given; see --help");
  const int64_t steps = (*arguments)["steps"].as<int64_t>();
  if (steps < 1) fail_usage("--steps is ", steps, ", wanted 1 or more");
  const Json report =
      bench_training((*arguments)["model"].as<std::string>(), train_options(*arguments), steps);
  if (arguments->count("json"))
    std::printf("%s\n", report.dump(2).c_str());
  else
    print_table(report);
  return 0;
}

}  // namespace nibble
