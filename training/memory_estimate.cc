#include "training/memory_estimate.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "model/model.h"
#include "model/tensors.h"
#include "quant/fake/torch_device.h"
#include "quant/format/registry.h"
#include "training/learner.h"
#include "training/loss.h"
#include "training/name_patterns.h"
#include "training/teacher_cache.h"
#include "training/top_k_records.h"

namespace nibble {
namespace {

constexpr int64_t kFloat = sizeof(float);
constexpr int64_t kBfloat16 = 2;

struct Counts {
  int64_t weights = 0;  // of all tensors whose W^ stays in memory
  int64_t masters = 0;  // of those that train on a grid
  int64_t scales = 0;   // of those
  int64_t blocks = 0;   // bytes of stored ones
  int64_t largest = 0;  // weights of the largest tensor
  int64_t largest_trained = 0;
  int64_t parameters = 0;      // that the optimizer moves, but for scales
  int64_t trained_scales = 0;  // of scales, those that are not frozen
  int64_t training_state = 0;  // what the way of training keeps besides
};

Counts count(const GgufFile& source, const Plan& plan, const QuantOptions& quant) {
  Counts counts;
  const NamePatterns frozen(quant.frozen);
  for (const PlanEntry& entry : plan.entries) {
    const int64_t weights = source.tensor(entry.tensor).num_weights();
    const bool trains = !frozen.match(entry.tensor);
    if (trains) counts.largest_trained = std::max(counts.largest_trained, weights);
    const bool quantized = quant.type != "none" && entry.target != GgmlType::kF32;
    if (!(quantized && quant.weights == "scales")) counts.weights += weights;
    counts.largest = std::max(counts.largest, weights);
    if (trains && (quantized || quant.type == "none" || quant.weights == "full")) {
      const bool low_rank = quantized && quant.weights == "lora";
      const int64_t matrices = entry.shape.size() > 2 ? entry.shape[2] : 1;
      const int64_t factors =
          quant.lora_rank * (matrices * entry.shape[0] + weights / entry.shape[0]);
      counts.parameters += low_rank ? factors : weights;
      if (low_rank) counts.training_state += 2 * factors;
      if (quantized && quant.weights == "rounding") counts.training_state += weights;
    }
    if (!quantized) continue;
    const Format& format = require_decoder(entry.target);
    const bool stored = quant.weights == "scales";
    if (stored)
      counts.blocks += entry.bytes_as(entry.target);
    else
      counts.masters += weights;
    if (quant.scales == "dynamic" || (stored && (format.has_byte_scales || !trains))) continue;
    const int64_t scales = weights / format.block_size * format.num_scales;
    counts.scales += scales;
    if (trains) counts.trained_scales += scales;
  }
  return counts;
}

/// Model::keep_matrices_cast(); a streamed one's matrices take none.
int64_t teacher_bytes(const GgufFile& teacher, torch::Dtype dtype, bool streamed) {
  int64_t bytes = 0;
  for (const GgufTensor& tensor : teacher.tensors()) {
    const bool cast = is_matmul_weight(tensor.name, tensor.shape.size());
    if (streamed && is_made_on_use(tensor.name, tensor.shape.size())) continue;
    bytes += tensor.num_weights() * (cast ? static_cast<int64_t>(c10::elementSize(dtype)) : kFloat);
  }
  return bytes;
}

/// A smaller setting, as the configuration writes it.
struct Saving {
  std::string setting;
  void (*apply)(TrainOptions&);
};

std::vector<Saving> savings(const TrainOptions& options) {
  return {
      {"activation_checkpointing: true",
       [](TrainOptions& o) { o.activation_checkpointing = true; }},
      {concat("micro_batch_tokens: ", options.data.sequence_length),
       [](TrainOptions& o) { o.micro_batch_tokens = o.data.sequence_length; }},
      {"loss.chunk_positions: 32",
       [](TrainOptions& o) {
         o.loss.chunk_positions = std::min<int64_t>(32, o.loss.chunk_positions);
       }},
      {"loss.teacher_top_k: 64",
       [](TrainOptions& o) {
         if (loss_shares(o.loss).kl > 0 && o.loss.teacher_top_k == 0) o.loss.teacher_top_k = 64;
       }},
      {"stream_teacher: true", [](TrainOptions& o) { o.stream_teacher = true; }},
      {"loss.kind: ce", [](TrainOptions& o) { o.loss.kind = "ce"; }},
  };
}

/// "; it would fit with ...": savings one after the other until it does.
std::string advice(const GgufFile& source, const Plan& plan, TrainOptions options, int64_t process,
                   int64_t limit) {
  std::string settings;
  int64_t least = estimate_memory(source, plan, options, process).total();
  for (const Saving& saving : savings(options)) {
    saving.apply(options);
    const int64_t total = estimate_memory(source, plan, options, process).total();
    if (total == least) continue;  // set already
    least = total;
    settings += (settings.empty() ? "" : ", ") + saving.setting;
    if (total <= limit) return concat("; it would fit with ", settings, ": ", format_bytes(total));
  }
  return concat("; the least that settings can make of it is ", format_bytes(least),
                settings.empty() ? "" : " (" + settings + ")",
                ": take a smaller model or a machine with more memory");
}

}  // namespace

MemoryEstimate estimate_memory(const GgufFile& source, const Plan& plan,
                               const TrainOptions& options, int64_t process) {
  const bool distils = loss_shares(options.loss).kl > 0;
  const bool has_teacher = distils && options.loss.teacher_top_k == 0;
  const bool learned = options.quant.scales == "learned";
  const Counts counts = count(source, plan, options.quant);
  const torch::Dtype dtype = parse_compute_dtype(options.dtype, torch_device(options.device));
  const ActivationBytes activation = activation_bytes(source, dtype);
  const int64_t positions = std::min(options.micro_batch_tokens, options.batch_tokens);
  const int64_t chunk = std::min(options.loss.chunk_positions, positions);
  const PlanEntry* output = plan.find("output.weight");
  if (!output) output = plan.find("token_embd.weight");
  check(output != nullptr, "the plan has neither output.weight nor token_embd.weight");
  const int64_t width = output->shape[0], vocab = output->shape[1];
  const int64_t outputs =
      1 + has_teacher;  // output matrices and logits: the student's, the teacher's

  MemoryEstimate estimate;
  estimate.process = process;
  estimate.weights = kFloat * (counts.weights + counts.masters + 2 * counts.scales) +
                     kFloat * counts.training_state + counts.blocks;
  if (has_teacher)
    estimate.weights +=
        options.teacher.empty()
            ? teacher_bytes(source, dtype, options.stream_teacher)
            : teacher_bytes(GgufFile::open(options.teacher), dtype, options.stream_teacher);
  const bool stored = options.quant.weights == "scales";
  // The ratios before a step, which masters follow.
  if (learned && !stored && parse_estimator(options.quant.estimator).follows)
    estimate.weights += kFloat * counts.scales;
  const int64_t trained_scales = learned ? counts.trained_scales : 0;
  const int64_t moved = stored ? 0 : counts.parameters;
  estimate.optimizer = kFloat * 2 * (moved + trained_scales);
  const int64_t slopes = model_shape(source).logit_cap > 0;  // of capped logits
  estimate.logits = kFloat * (outputs + slopes) * chunk * vocab;
  // Output matrices as the loss multiplies them, where they are cast or made for it, and the
  // gradient of one that trains.
  const int64_t made = stored + (has_teacher && options.stream_teacher);
  const bool output_trains = !NamePatterns(options.quant.frozen).match(output->tensor);
  if (dtype != torch::kFloat32)
    estimate.logits +=
        kBfloat16 * (outputs * vocab * width + chunk * vocab + output_trains * vocab * width);
  else
    estimate.logits += kFloat * made * vocab * width;

  const int64_t kept =
      activation.num_blocks *
          (options.activation_checkpointing ? activation.block_input : activation.block) +
      (options.activation_checkpointing ? activation.block : 0);
  // Before the blocks and after them: their input, the last norm's input and result, the teacher's
  // states, the gradient at the hidden states.
  const int64_t ends = 5 * width * kFloat;
  const int64_t activations = positions * (kept + ends);
  // While the loss runs all activations exist and of the gradients the output matrix's; after the
  // backward pass it is the other way round. In between the heap finds room for gradients among the
  // freed activations, but not all of it: half of the smaller is what SmolLM2 was seen to need on
  // top (512 to 2,048 positions, both dtypes, with and without activation checkpointing). Weights
  // that are made on use come and go between activations, whose places are then too small for other
  // ones: half of the largest, for the student's and for the teacher's. Peaks were 5 % below to 8 %
  // above the sum.
  const int64_t at_loss = activations + output_trains * kFloat * vocab * width;
  // With stored codes and factors of low rank a weight's gradient is gone before the next one is
  // made.
  const bool mapped = stored || options.quant.weights == "lora";
  const int64_t at_end = kFloat * (moved + trained_scales + (mapped ? counts.largest_trained : 0));
  estimate.activations = activations;
  estimate.gradients = std::max(at_loss, at_end) + std::min(at_loss, at_end) / 2 +
                       made * kFloat * counts.largest / 2 - estimate.activations;
  if (has_teacher) estimate.activations += kFloat * kMaxHeldOutTokens * width;
  if (distils && !has_teacher)
    estimate.activations +=
        kMaxHeldOutTokens * TopKRecords(options.loss.teacher_top_k, vocab).bytes();
  return estimate;
}

int64_t asking_bytes(const GgufFile& teacher, const TrainOptions& options) {
  const torch::Dtype dtype = parse_compute_dtype(options.dtype, torch_device(options.device));
  const ModelShape shape = model_shape(teacher);
  const int64_t positions = std::min(options.micro_batch_tokens, options.batch_tokens);
  const int64_t chunk = std::min(options.loss.chunk_positions, positions);
  int64_t logits = kFloat * chunk * shape.vocab_size;
  if (options.stream_teacher) logits += kFloat * shape.vocab_size * shape.width;
  if (dtype != torch::kFloat32)
    logits += kBfloat16 * (chunk * shape.vocab_size + shape.vocab_size * shape.width);
  // Without a gradient a block's activations are gone when the next one's come.
  return teacher_bytes(teacher, dtype, options.stream_teacher) + logits +
         positions * activation_bytes(teacher, dtype).block + kFloat * kMaxMeasured * shape.width;
}

MemoryEstimate check_memory(const GgufFile& source, const Plan& plan, const TrainOptions& options,
                            int64_t process, int64_t available) {
  const MemoryEstimate estimate = estimate_memory(source, plan, options, process);
  const int64_t limit = process + available;
  if (estimate.total() <= limit) return estimate;
  fail("the run needs about ", format_bytes(estimate.total()), " of memory (weights ",
       format_bytes(estimate.weights), ", optimizer ", format_bytes(estimate.optimizer),
       ", gradients ", format_bytes(estimate.gradients), ", activations ",
       format_bytes(estimate.activations), ", logits ", format_bytes(estimate.logits),
       "), and there is ", format_bytes(limit), advice(source, plan, options, process, limit));
}

}  // namespace nibble
