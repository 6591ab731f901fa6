// The training loop: fake-quantized student, distillation from the unquantized teacher, AdamW,
// checkpoints, metrics.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/model.h"
#include "model/tokenizer.h"
#include "quant/fake/quantizer.h"
#include "quant/format/device.h"
#include "quant/mix/plan.h"

namespace nibble {

struct DataOptions {
  std::vector<std::string> files;  // paths or globs; .jsonl: one object a line with `text_field`
  /// Of each entry of `files`: the share of the sequences that come from it; they are scaled to a
  /// sum of 1. Empty: sequences come as often as there are.
  std::vector<double> weights;
  /// "text", or "chat": conversations (model/chat/conversation.h) through the model's own template.
  std::string format = "text";
  bool answers_only = true;  // of chat: only what the assistant says counts in the loss
  std::string text_field = "text";
  int64_t sequence_length = 512;  // tokens
  double held_out = 0.02;  // share of documents (at least one sequence) that training never sees
  int64_t max_bytes = 0;   // of text read; 0: all

  bool is_chat() const { return format == "chat"; }
};

struct LossOptions {
  std::string kind = "kl";        // "kl", "ce", "mix"
  double ce_weight = 0.0;         // of "mix"; KL gets 1 - ce_weight
  int64_t chunk_positions = 256;  // positions whose logits exist at once
  /// What the loss that keeps a mixture's experts equally busy counts beside it (model/experts.h),
  /// as transformers' router_aux_loss_coef. 0: not at all.
  double load_balance = 0;
  /// The teacher is asked once, before training, and of its answers this many of the likeliest
  /// tokens are kept on disk (teacher_cache.h); 0: it stays, whole.
  int64_t teacher_top_k = 0;
  std::string teacher_cache;  // where; "": in the run folder
};

struct OptimizerOptions {
  double learning_rate = 1e-4;
  double scale_learning_rate = 3e-4;  // relative: scales train as ratios to their initial values
  /// Both rates are shares of the distance between levels, as the mean over the model has it
  /// (Student::coarseness()); learning_rate in each tensor times its root mean square (Shazeer and
  /// Stern 2018, "Adafactor", section 8). So one pair of rates suits an embedding and a projection,
  /// 2 bits and 5.
  bool relative = false;
  double weight_decay = 0.0;
  double beta1 = 0.9, beta2 = 0.99, epsilon = 1e-8;
  double clip_norm = 1.0;     // 0: none
  double warmup = 0.05;       // share of the steps
  double final_ratio = 0.05;  // of the learning rate, at the end of the cosine
};

struct QuantOptions {
  std::string type = "Q4_0";           // a type name, or "none": plain fine-tuning
  std::string scales = "learned";      // "learned", "dynamic", "frozen"
  std::string initial = "search";      // "search", "gptq", "awq", "imatrix", "ggml", "rtn"
  int64_t calibration_tokens = 32768;  // of training text that gptq, awq and imatrix see
  /// "full"; "lora" or "rounding" (quant/fake/master_training.h): norms and what is not quantized
  /// stay as they are; or "scales": codes stay too, and only the scales train, with the optimizer's
  /// rate for scales.
  std::string weights = "full";
  int64_t lora_rank = 16;  // of "lora"
  /// With "scales": path of the GGUF file whose codes and scales are the start (and whose types the
  /// plan has), or "". The model that is trained for it is then the teacher alone.
  std::string init_file;
  std::string estimator = "relative";  // of learned scales (quant/format/estimator.h), or "lsq"
  /// Regular expressions, found anywhere in a tensor's name: such tensors are on the grid as they
  /// start and do not train.
  std::vector<std::string> frozen;
  /// Whose rounding of activations the student sees (model/activation_rounding.h): "none",
  /// "llama_cpu", "llama_cuda".
  std::string activations = "none";
};

/// The stage before the end-to-end one (training/blockwise.h). A step is one batch_tokens.
struct BlockwiseOptions {
  int64_t tokens = 0;  // of training text that each block sees; 0: there is no such stage
  int64_t epochs = 1;  // over them
  int64_t batch_tokens = 1024;
  double learning_rate = 1e-2;  // relative (OptimizerOptions)
  double scale_learning_rate = 1e-3;
  /// Of the same text, on which is found what an error in a block's output costs
  /// (training/block_fisher.h); 0: all directions count alike. Wants many steps of a block.
  int64_t fisher_tokens = 0;
};

struct TrainOptions {
  DataOptions data;
  LossOptions loss;
  OptimizerOptions optimizer;
  /// Path of the GGUF file whose predictions a KL loss distils, with the same tokenizer; "": the
  /// model itself, unquantized.
  std::string teacher;
  /// The teacher's matrices stay in its file and are decoded whenever they are used.
  bool stream_teacher = false;
  QuantOptions quant;
  BlockwiseOptions blockwise;
  int64_t batch_tokens = 1024;  // per step
  int64_t micro_batch_tokens = 1024;
  int64_t max_tokens = 100'000;  // the budget; steps = max_tokens / batch_tokens
  double max_minutes = 0;        // 0: no limit on time; the schedule follows whichever ends first
  int64_t evaluate_every = 50;   // steps, held-out loss; 0: only at the end
  int64_t early_stop = 0;        // evaluations in a row without a lower held-out loss that end the
                                 // training; 0: none do
  int64_t checkpoint_every = 100;  // steps; 0: only at the end
  std::string dtype = "float32";   // of the matmuls, or "bfloat16", or "auto"
  bool activation_checkpointing =
      false;  // less memory, about a third more time (model/recompute.h)
  uint64_t seed = 1;
  /// Where it trains: of the command line, no part of the configuration, so a run can go on
  /// elsewhere (though bit for bit as if never stopped on the CPU only).
  Device device = {};
};

struct StepMetrics {
  int64_t step = 0, tokens = 0;
  double loss = 0, learning_rate = 0, grad_norm = 0, tokens_per_second = 0, seconds = 0;
  double load_balance = 0;    // not weighted; 0 where it is no part of the loss
  int64_t unreached = 0;      // experts' matrices that no token of the step reached
  double kl = 0, ce = 0;      // means over the step's positions, nats; 0 where not part of the loss
  double held_out_loss = -1;  // -1: not evaluated at this step
  double held_out_kl = -1, held_out_ce = -1;
};

struct TrainResult {
  std::vector<StepMetrics> metrics;  // of the steps that this call took; see read_metrics()
  std::string checkpoint;            // path of the last one
  std::string
      best_checkpoint;  // of the lowest held-out loss; the last one where nothing was held out
  int64_t best_step = 0;
  int64_t steps = 0, tokens = 0;  // of the whole run so far
  double seconds = 0;
  int64_t predicted_bytes =
      0;                 // peak memory, as estimated before the start; 0: nothing was left to train
  bool complete = true;  // false: to be gone on with
  bool stopped = false;  // a signal asked for it (after the last step: complete and stopped)
};

/// Held-out tokens that an evaluation reads at most: enough to rank checkpoints, and a few steps'
/// worth of time.
constexpr int64_t kMaxHeldOutTokens = 8192;

/// Trains the model loaded from `source` under `plan` and leaves
/// `run_dir`/checkpoints/{last,best}.safetensors and `run_dir`/metrics.jsonl (one JSON object a
/// line: the fields of StepMetrics; step 0 is the start, which has a held-out loss only). What is
/// quantized leaves `run_dir`/start.gguf too: the model at step 0.
///
/// `last` can be gone on from while the run is not over; at its end it ships, without optimizer
/// state. While the run is not over, `previous` is the `last` before: no checkpoint goes before a
/// newer one is whole. Those of an earlier run in the folder go when this one has its first; where
/// it was not over, a warning says so.
///
/// SIGINT, SIGTERM or SIGHUP: the step is finished, `last` is written, and the result is not
/// complete; a second signal ends the process at once.
///
/// resume: goes on from `last` where there is one, bit for bit as if never stopped (but for a
/// schedule that follows the clock); from `previous`, with a warning, where `last` is damaged or
/// missing; a complete run is left as it is and its result returned, without metrics. A damaged
/// `best` is warned of, and found anew among the steps that follow.
///
/// Throws Error naming step, batch and the first bad tensor when the loss is not finite; naming the
/// checkpoint when it is of other options or another plan.
TrainResult train(const GgufFile& source, const Plan& plan, const TrainOptions& options,
                  const std::string& run_dir, bool resume = false);

/// What is in `run_dir`/metrics.jsonl: all steps of a run, however often it was stopped. A line
/// that is not whole is left out.
std::vector<StepMetrics> read_metrics(const std::string& run_dir);

}  // namespace nibble
