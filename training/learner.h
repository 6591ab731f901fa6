// One optimizer step: teacher and student forward, loss, backward, fake-quant backward, AdamW,
// materialize. The trainer calls it in a loop, the benchmark times it.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model.h"
#include "quant/fake/torch.h"
#include "training/loss.h"
#include "training/optimizer.h"
#include "training/student.h"
#include "training/trainer.h"

namespace nibble {

/// Where a step's time goes, seconds; on a GPU each part ends when its work is done. loss: output
/// matrix, softmax and their gradients.
struct StepTimes {
  double teacher = 0, forward = 0, loss = 0, backward = 0;
  double quant_backward = 0, optimizer = 0, materialize = 0;
  double total() const {
    return teacher + forward + loss + backward + quant_backward + optimizer + materialize;
  }
};

struct StepResult {
  LossSums sums;
  double loss = 0;            // the mean that is minimized
  double grad_norm = 0;       // of all parameters, before clipping
  double load_balance = 0;    // its mean over the micro-batches; 0 where it is not in the loss
  int64_t num_unreached = 0;  // experts' matrices (Student::num_unreached())
  StepTimes times;
};

/// What ChunkedLoss wants for the student's states [B * T, D] of a batch: positions that count,
/// without their weights. teacher, answer: as Learner has them.
LossInputs loss_inputs(Model& student, Model* teacher, const Batch& batch,
                       const torch::Tensor& hidden, const torch::Tensor& answer);

class Learner {
 public:
  /// student, teacher: must outlive it. teacher: nullptr when the loss has no KL part, and where
  /// options.loss.teacher_top_k has records take its place.
  Learner(Student& student, Model* teacher, const TrainOptions& options);

  /// One update from the mean loss over all micro-batches. rate_factor: the schedule's. Throws
  /// Error naming the first bad tensor, and leaves parameters as they were, when loss or gradient
  /// is not finite. answers: nullptr, or the teacher's one for each micro-batch: of an earlier call
  /// for the same one, or undefined, and then set, so that the teacher is asked about a batch once.
  /// An answer is the teacher's states, or where there is no teacher its records, [B * T, bytes].
  StepResult step(const std::vector<Batch>& micro_batches, double rate_factor,
                  std::vector<torch::Tensor>* answers = nullptr);
  /// The student's loss, without gradients. answer: as for step().
  LossSums evaluate(const Batch& batch, torch::Tensor& answer);
  /// The mean that the options weigh KL and CE to.
  double mean_loss(const LossSums& sums) const;

  AdamW& optimizer() { return optimizer_; }

 private:
  struct Totals {
    double positions = 0, targets = 0;
  };
  void learn(const Batch& batch, const Totals& totals, torch::Tensor& answer, StepResult& result);
  /// [B * T, E] in the compute dtype, as the loss multiplies it.
  torch::Tensor ask_teacher(const Batch& batch);
  /// hidden: undefined when the loss was finite and a gradient is not.
  [[noreturn]] void fail_not_finite(const char* what, double value, const torch::Tensor& hidden,
                                    const torch::Tensor& answer) const;

  Student* student_;
  Model* teacher_;
  LossShares shares_;
  double load_balance_;  // what it counts
  ChunkedLoss loss_;
  AdamW optimizer_;
};

/// "float32", "bfloat16", or "auto": bfloat16 where the device multiplies it faster. Throws Error
/// (usage) for another name.
torch::Dtype parse_compute_dtype(const std::string& name, torch::Device device);

}  // namespace nibble
