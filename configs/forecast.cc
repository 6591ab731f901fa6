#include "configs/forecast.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/progress.h"
#include "io/gguf.h"
#include "model/hf/convert.h"
#include "model/hf/layout.h"
#include "quant/mix/quantize_file.h"
#include "training/loss.h"
#include "training/top_k_records.h"

namespace nibble {
namespace {

/// Multiplications and additions in matmuls with weights: 2 for each weight and token forward, 4
/// backward. Attention between positions, which is some percent at the sequence lengths of
/// training, is left out.
double count_operations(const TrainOptions& options, const Forecast& forecast, double weights) {
  const double forward = 2.0 * weights;
  const double teacher = loss_shares(options.loss).kl > 0 ? 1 : 0;
  const double again = options.activation_checkpointing ? 1 : 0;
  // A block's own stage: the unquantized block, a training step an epoch, and the trained block;
  // what errors cost: forward, and once more with gradients of the inputs alone.
  const double in_blocks = 1 + 3 * static_cast<double>(options.blockwise.epochs) + 1;
  const double fisher = 1 + 1 + 1;
  return forward *
         (static_cast<double>(forecast.tokens) * (teacher + again + 3) +
          static_cast<double>(forecast.block_tokens) * in_blocks +
          static_cast<double>(std::min(forecast.block_tokens, options.blockwise.fisher_tokens)) *
              fisher);
}

/// Those that a token is multiplied with: of a mixture only some experts'.
double active_weights(const GgufFile& source, const Plan& plan) {
  const std::string prefix = source.metadata().get_string("general.architecture") + ".expert_";
  const double used = static_cast<double>(source.metadata().get_int_or(prefix + "used_count", 1));
  double active = 0;
  for (const PlanEntry& entry : plan.entries) {
    const bool is_stack = entry.shape.size() == 3;
    active += static_cast<double>(entry.bytes_as(GgmlType::kF32)) / 4 *
              (is_stack ? used / static_cast<double>(entry.shape[2]) : 1);
  }
  return active;
}

}  // namespace

Forecast make_forecast(const RunConfig& config) {
  if (config.makes_model()) fail_usage("a forecast wants a model that is there, not new_model");
  const TrainOptions& options = config.train;
  const GgufFile source =
      is_hf_folder(config.model) ? hf_layout(config.model) : GgufFile::open(config.model);
  const Plan plan = run_plan(config, source);
  if (config.init_file().empty()) check_encodable(plan);
  Forecast forecast;
  forecast.type = config.init_file().empty() ? options.quant.type : plan.type_name;
  for (const PlanEntry& entry : plan.entries)
    forecast.weights += entry.bytes_as(GgmlType::kF32) / 4;
  forecast.file_bytes = plan.total_bytes();
  forecast.steps = options.max_tokens / options.batch_tokens;
  forecast.tokens = forecast.steps * options.batch_tokens;
  forecast.block_tokens = options.blockwise.tokens;
  forecast.memory = estimate_memory(source, plan, options, 0);
  if (loss_shares(options.loss).kl > 0 && options.loss.teacher_top_k > 0) {
    forecast.asking_bytes = options.teacher.empty()
                                ? asking_bytes(source, options)
                                : asking_bytes(GgufFile::open(options.teacher), options);
    forecast.record_bytes =
        TopKRecords(options.loss.teacher_top_k, model_shape(source).vocab_size).bytes();
  }
  forecast.operations = count_operations(options, forecast, active_weights(source, plan));
  return forecast;
}

std::string forecast_text(const RunConfig& config, const Forecast& f) {
  const auto number = [](const char* format, double value) {
    char text[48];
    std::snprintf(text, sizeof text, format, value);
    return std::string(text);
  };
  const double bits = 8.0 * static_cast<double>(f.file_bytes);
  std::string text =
      concat(config.model, " onto ", f.type, "\n  file      ", format_bytes(f.file_bytes), ", ",
             number("%.2f", bits / static_cast<double>(f.weights)), " bits per weight, of ",
             number("%.3g", static_cast<double>(f.weights) / 1e9), " billion weights\n  training  ",
             f.steps, " steps, ", f.tokens, " tokens");
  if (f.block_tokens > 0) text += concat("; each block alone on ", f.block_tokens, " before");
  text +=
      concat("\n  memory    ", format_bytes(f.memory.total()),
             " at the peak, besides the program's own 0.3 GB: weights ",
             format_bytes(f.memory.weights), ", optimizer ", format_bytes(f.memory.optimizer),
             ", gradients ", format_bytes(f.memory.gradients), ", activations ",
             format_bytes(f.memory.activations), ", logits ", format_bytes(f.memory.logits), "\n");
  if (f.record_bytes > 0)
    text += concat("  teacher   asked before that, with ", format_bytes(f.asking_bytes),
                   " of memory; ", format_bytes(f.record_bytes), " on disk for each token\n");
  return text + concat("  work      ", number("%.2g", f.operations),
                       " floating-point operations: ", format_duration(f.operations / 0.2e12),
                       " at 0.2 TFLOP/s (two cores with bfloat16 products), ",
                       format_duration(f.operations / 200e12), " at 200 TFLOP/s\n");
}

std::string forecast_json(const RunConfig& config, const Forecast& f) {
  const nlohmann::ordered_json json = {{"model", config.model},
                                       {"type", f.type},
                                       {"weights", f.weights},
                                       {"file_bytes", f.file_bytes},
                                       {"steps", f.steps},
                                       {"tokens", f.tokens},
                                       {"blockwise_tokens", f.block_tokens},
                                       {"memory_bytes", f.memory.total()},
                                       {"asking_bytes", f.asking_bytes},
                                       {"record_bytes", f.record_bytes},
                                       {"operations", f.operations}};
  return json.dump(2) + "\n";
}

}  // namespace nibble
