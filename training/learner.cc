#include "training/learner.h"

#include <chrono>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "model/layers.h"
#include "quant/fake/torch_device.h"
#include "training/data.h"

namespace nibble {
namespace {

/// Adds the time since the last mark to one of a step's times.
class Stopwatch {
 public:
  explicit Stopwatch(torch::Device device) : device_(device) {}

  void add_to(double& seconds) {
    synchronize(device_);
    const auto now = std::chrono::steady_clock::now();
    seconds += std::chrono::duration<double>(now - mark_).count();
    mark_ = now;
  }

 private:
  torch::Device device_;
  std::chrono::steady_clock::time_point mark_ = std::chrono::steady_clock::now();
};

/// [B, T, D] -> [B * T, D]
torch::Tensor by_position(const torch::Tensor& hidden) {
  return hidden.reshape({-1, hidden.size(-1)});
}

/// The positions that count in the loss, [n] int64: those before a token that does. Undefined: all.
torch::Tensor counted_positions(const Batch& batch) {
  if (!batch.trained.defined()) return {};
  return next_token_targets(batch).ge(0).nonzero().flatten();
}

int64_t num_counted(const Batch& batch) {
  return batch.trained.defined() ? counted_positions(batch).numel() : batch.tokens.numel();
}

/// Rows of a tensor that count.
torch::Tensor counted(const torch::Tensor& rows, const torch::Tensor& positions) {
  return positions.defined() ? rows.index_select(0, positions.to(rows.device())) : rows;
}

/// Whether the processor multiplies bfloat16 faster than float32: with AMX, or where AVX512_BF16
/// does twice the products of float32 at once, as on AMD's. Intel's does as many at once, and the
/// rows must be packed first: half the speed of float32 in the end (docs/architecture.md).
bool multiplies_bfloat16_faster() {
  return __builtin_cpu_supports("amx-bf16") ||
         (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("amd"));
}

bool all_finite(const torch::Tensor& tensor) { return at::isfinite(tensor).all().item<bool>(); }

/// Gradients of the positions that count, with zeros at the others.
torch::Tensor at_all_positions(const torch::Tensor& gradients, const Batch& batch,
                               const torch::Tensor& hidden) {
  const torch::Tensor positions = counted_positions(batch);
  if (!positions.defined()) return gradients;
  return torch::zeros_like(hidden, gradients.options())
      .index_copy_(0, positions.to(hidden.device()), gradients);
}

}  // namespace

torch::Dtype parse_compute_dtype(const std::string& name, torch::Device device) {
  if (name == "float32") return torch::kFloat32;
  if (name == "bfloat16") return torch::kBFloat16;
  if (name == "auto")
    return device.is_cuda() || multiplies_bfloat16_faster() ? torch::kBFloat16 : torch::kFloat32;
  fail_usage("no dtype '", name, "' for training; auto, float32 or bfloat16",
             did_you_mean(name, {"auto", "float32", "bfloat16"}));
}

LossInputs loss_inputs(Model& student, Model* teacher, const Batch& batch,
                       const torch::Tensor& hidden, const torch::Tensor& answer) {
  const torch::Tensor positions = counted_positions(batch);
  LossInputs inputs;
  inputs.hidden = counted(hidden.detach(), positions);
  inputs.output_weight = student.output_weight().detach();
  inputs.logit_cap = student.shape().logit_cap;
  inputs.targets = counted(next_token_targets(batch), positions);
  if (!teacher && answer.defined()) inputs.teacher_top = counted(answer, positions);
  if (!teacher) return inputs;
  inputs.teacher_hidden = counted(answer, positions);
  inputs.teacher_output = teacher->output_weight().detach();
  inputs.teacher_logit_cap = teacher->shape().logit_cap;
  return inputs;
}

Learner::Learner(Student& student, Model* teacher, const TrainOptions& options)
    : student_(&student),
      teacher_(teacher),
      shares_(loss_shares(options.loss)),
      load_balance_(options.loss.load_balance),
      loss_(options.loss.chunk_positions,
            parse_compute_dtype(options.dtype, student.model().device())),
      optimizer_(options.optimizer, options.optimizer.relative ? student.coarseness() : 1) {
  check(teacher || shares_.kl == 0 || options.loss.teacher_top_k > 0, "a KL loss needs a teacher");
  const torch::Dtype dtype = parse_compute_dtype(options.dtype, student.model().device());
  student.model().set_compute_dtype(dtype);
  if (teacher) {
    teacher->set_compute_dtype(dtype);
    teacher->keep_matrices_cast();
  }
  student.add_parameters(optimizer_);
}

double Learner::mean_loss(const LossSums& sums) const {
  return shares_.kl * sums.mean_kl() + shares_.ce * sums.mean_ce();
}

torch::Tensor Learner::ask_teacher(const Batch& batch) {
  check(teacher_ || shares_.kl == 0, "a KL loss needs the teacher's records of each batch");
  if (!teacher_) return {};
  const torch::NoGradGuard no_grad;
  return by_position(teacher_->hidden(batch)).to(teacher_->compute_dtype());
}

StepResult Learner::step(const std::vector<Batch>& micro_batches, double rate_factor,
                         std::vector<torch::Tensor>* answers) {
  StepResult result;
  Totals totals;
  for (const Batch& batch : micro_batches) {
    totals.positions += static_cast<double>(num_counted(batch));
    totals.targets += next_token_targets(batch).ge(0).sum().item<double>();
  }
  for (size_t i = 0; i < micro_batches.size(); ++i) {
    torch::Tensor own;
    learn(micro_batches[i], totals, answers ? answers->at(i) : own, result);
  }
  result.loss = mean_loss(result.sums);
  if (load_balance_ > 0) result.loss += load_balance_ * result.load_balance;

  Stopwatch watch(student_->model().device());
  result.grad_norm = student_->backward();
  result.num_unreached = student_->num_unreached();
  watch.add_to(result.times.quant_backward);
  if (!std::isfinite(result.grad_norm)) fail_not_finite("gradient norm", result.grad_norm, {}, {});
  optimizer_.step(student_->gradients(), rate_factor, result.grad_norm);
  student_->clear_gradients();
  watch.add_to(result.times.optimizer);
  student_->update();
  watch.add_to(result.times.materialize);
  return result;
}

void Learner::learn(const Batch& batch, const Totals& totals, torch::Tensor& answer,
                    StepResult& result) {
  Stopwatch watch(student_->model().device());
  if (!answer.defined()) answer = ask_teacher(batch);
  watch.add_to(result.times.teacher);
  Model& model = student_->model();
  // Of each micro-batch by itself, as transformers has it, by its share of the step.
  const double share = static_cast<double>(num_counted(batch)) / totals.positions;
  model.set_load_balance(load_balance_ * share);
  const torch::Tensor hidden = by_position(model.hidden(batch));
  model.set_load_balance(0);
  result.load_balance += share * model.load_balance();
  watch.add_to(result.times.forward);

  LossInputs of_batch = loss_inputs(model, teacher_, batch, hidden, answer);
  of_batch.kl_weight = shares_.kl / totals.positions;
  of_batch.ce_weight = totals.targets > 0 ? shares_.ce / totals.targets : 0.0;
  const torch::Tensor& output = model.output_weight();
  LossGradients gradients{{}, output.mutable_grad(), output.requires_grad()};
  const LossSums sums = loss_.run(of_batch, &gradients);
  if (output.requires_grad()) {
    output.mutable_grad() = std::move(gradients.output_weight);
    run_gradient_hook(output);
  }
  result.sums += sums;
  watch.add_to(result.times.loss);
  if (!std::isfinite(sums.kl + sums.ce)) fail_not_finite("loss", mean_loss(sums), hidden, answer);

  if (hidden.requires_grad()) hidden.backward(at_all_positions(gradients.hidden, batch, hidden));
  watch.add_to(result.times.backward);
}

void Learner::fail_not_finite(const char* what, double value, const torch::Tensor& hidden,
                              const torch::Tensor& answer) const {
  std::string bad = student_->first_bad_weight();
  if (bad.empty() && answer.defined() && !all_finite(answer)) bad = "the teacher's hidden states";
  if (bad.empty() && hidden.defined() && !all_finite(hidden)) bad = "the student's hidden states";
  if (bad.empty() && !hidden.defined()) bad = student_->first_bad_gradient();
  student_->clear_gradients();
  fail(what, " is ", value, "; first bad tensor: ", bad.empty() ? "the logits" : bad);
}

LossSums Learner::evaluate(const Batch& batch, torch::Tensor& answer) {
  const torch::NoGradGuard no_grad;
  if (!answer.defined()) answer = ask_teacher(batch);
  const torch::Tensor hidden = by_position(student_->model().hidden(batch));
  return loss_.run(loss_inputs(student_->model(), teacher_, batch, hidden, answer), nullptr);
}

}  // namespace nibble
