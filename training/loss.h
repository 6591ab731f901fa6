// Distillation and cross-entropy through the output matrix, a chunk of positions at a time: logits,
// loss, dL/dlogits and their products exist for one chunk only, so no second full logit tensor is
// ever made. Gradients are produced with the loss instead of being recorded for autograd, whose
// graph would keep every chunk's logits alive; the caller goes on with
// hidden.backward(grad_hidden).
#pragma once

#include <cstdint>

#include "quant/fake/torch.h"
#include "training/trainer.h"

namespace nibble {

/// Shape letters: N positions, D student width, E teacher width, V vocabulary. All on one device,
/// but for the targets and the teacher's records.
struct LossInputs {
  torch::Tensor hidden;          // [N, D] float32, the student's, after its last norm
  torch::Tensor output_weight;   // [V, D] float32
  torch::Tensor teacher_hidden;  // [N, E], or undefined: no KL, but for
  torch::Tensor teacher_output;  // [V, E]
  torch::Tensor teacher_top;     // [N, bytes] uint8 on the CPU (top_k_records.h) in their place
  double logit_cap = 0, teacher_logit_cap = 0;  // as ModelShape has it
  // [N] int64 on the CPU: the next token, or -1 where none follows (end of a document).
  torch::Tensor targets;
  /// What one position's KL and CE count in the loss: their weights over the positions of the whole
  /// step, so that micro-batches add up to means.
  double kl_weight = 0, ce_weight = 0;

  bool distils() const { return teacher_hidden.defined() || teacher_top.defined(); }
};

struct LossGradients {
  torch::Tensor hidden;          // [N, D], written
  torch::Tensor output_weight;   // [V, D]: added to where defined, else made
  bool of_output_weight = true;  // whether that one is wanted
};

/// Unweighted sums over positions, nats.
struct LossSums {
  double kl = 0, ce = 0;
  int64_t kl_positions = 0, ce_positions = 0;

  LossSums& operator+=(const LossSums& other);
  double mean_kl() const { return kl_positions ? kl / kl_positions : 0.0; }
  double mean_ce() const { return ce_positions ? ce / ce_positions : 0.0; }
};

class ChunkedLoss {
 public:
  /// chunk_positions: positions whose logits exist at once. dtype: of the matrix products, float32
  /// or bfloat16.
  ChunkedLoss(int64_t chunk_positions, torch::Dtype dtype);

  /// gradients: nullptr when only the loss is wanted. Waits for a GPU once, at the end.
  LossSums run(const LossInputs& inputs, LossGradients* gradients);

 private:
  struct Products;
  torch::Tensor& logits_buffer(torch::Tensor& buffer, int64_t positions,
                               const torch::Tensor& output) const;

  int64_t chunk_positions_;
  torch::Dtype dtype_;
  torch::Tensor student_logits_, teacher_logits_,
      slopes_;  // reused: fresh pages cost as much as the loss itself
};

/// The share of KL and of CE in a loss kind. Throws Error (usage) for an unknown one.
struct LossShares {
  double kl = 0, ce = 0;
};
LossShares loss_shares(const LossOptions& options);

}  // namespace nibble
