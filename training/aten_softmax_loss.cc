#include "training/aten_softmax_loss.h"

namespace nibble {

torch::Tensor aten_softmax_loss(torch::Tensor& student, const torch::Tensor& teacher,
                                const torch::Tensor& targets, const PositionWeights& weights) {
  const torch::Tensor student_log = at::log_softmax(student, 1);
  torch::Tensor kl = torch::zeros({}, student.options().dtype(torch::kFloat64)), ce = kl;
  torch::Tensor teacher_log, token, has_token;
  if (teacher.defined()) {
    teacher_log = at::log_softmax(teacher, 1);
    // Rows are summed in float32 and their sums in float64: a cast of all logits would cost more
    // than the loss.
    kl = (teacher_log.exp() * (teacher_log - student_log)).sum(1).sum(torch::kFloat64);
  }
  if (targets.defined()) {
    has_token = targets.ge(0).unsqueeze(1);
    token = targets.clamp_min(0).unsqueeze(1);
    ce = student_log.gather(1, token)
             .neg()
             .masked_fill(has_token.logical_not(), 0)
             .sum(torch::kFloat64);
  }
  if (!weights.gradient) return at::stack({kl, ce});

  // dL/ds = (kl + ce) p_s - kl p_t - ce onehot(target), ce only where there is a target.
  const float kl_weight = teacher.defined() ? weights.kl : 0.0f;
  at::exp_out(student, student_log);
  if (targets.defined()) {
    const torch::Tensor ce_weight = has_token.to(torch::kFloat32) * weights.ce;
    student.mul_(ce_weight + kl_weight).scatter_add_(1, token, ce_weight.neg());
  } else {
    student.mul_(kl_weight);
  }
  if (teacher.defined()) student.sub_(teacher_log.exp_(), kl_weight);
  return at::stack({kl, ce});
}

}  // namespace nibble
