#include "configs/forecast.h"

#include <algorithm>

#include "base/error.h"
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

}  // namespace nibble
