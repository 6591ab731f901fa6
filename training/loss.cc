#include "training/loss.h"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "model/made_weight.h"
#include "training/aten_softmax_loss.h"
#include "training/softmax_loss.h"
#include "training/top_k_records.h"

namespace nibble {
namespace {

/// Loss of one row of logits, whose number is given.
using RowLoss = std::function<PositionLoss(float* student, int64_t row, int64_t target)>;

/// Loss of every row of `student` [n, V], which becomes dL/dlogits when gradients are wanted.
LossSums rows_loss(torch::Tensor& student, const int64_t* targets, bool distils,
                   const RowLoss& loss_of) {
  const int64_t rows = student.size(0), vocab = student.size(1);
  float* s = student.mutable_data_ptr<float>();
  std::vector<PositionLoss> losses(rows);
  parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      losses[row] = loss_of(s + row * vocab, row, targets ? targets[row] : -1);
  });
  LossSums sums;
  for (int64_t row = 0; row < rows; ++row) {
    sums.kl += losses[row].kl;
    sums.ce += losses[row].ce;
    sums.kl_positions += distils;
    sums.ce_positions += targets && targets[row] >= 0;
  }
  return sums;
}

/// Of positions with the teacher's logits [n, V], which are overwritten, or with none.
RowLoss loss_of_logits(torch::Tensor& teacher, int64_t vocab, const PositionWeights& weights) {
  float* t = teacher.defined() ? teacher.mutable_data_ptr<float>() : nullptr;
  return [=](float* student, int64_t row, int64_t target) {
    return softmax_loss(student, t ? t + row * vocab : nullptr, vocab, target, weights);
  };
}

/// Of positions with the teacher's records.
RowLoss loss_of_records(const torch::Tensor& records, int64_t vocab,
                        const PositionWeights& weights) {
  const auto layout = TopKRecords::of_bytes(records.size(1), vocab);
  const auto* bytes = static_cast<const std::byte*>(records.const_data_ptr());
  return [=](float* student, int64_t row, int64_t target) {
    return top_outcomes_loss(student, layout.decode(bytes + row * layout.bytes()), vocab, target,
                             weights);
  };
}

/// rows_loss() on a GPU, where sums stay until all chunks are queued.
class DeviceLoss {
 public:
  explicit DeviceLoss(const LossInputs& in) : in_(in) {
    if (in.hidden.is_cpu()) return;
    sums_ = torch::zeros({2}, in.hidden.options().dtype(torch::kFloat64));
    if (in.targets.defined()) targets_ = in.targets.to(in.hidden.device());
  }

  /// student: rows of the positions from `begin` on; becomes dL/dlogits when gradients are wanted.
  void add(torch::Tensor& student, const torch::Tensor& teacher, int64_t begin,
           const PositionWeights& weights) {
    const torch::Tensor targets =
        targets_.defined() ? targets_.narrow(0, begin, student.size(0)) : targets_;
    sums_.add_(aten_softmax_loss(student, teacher, targets, weights));
  }

  LossSums sums() const {
    const torch::Tensor on_cpu = sums_.cpu();
    LossSums sums;
    sums.kl = on_cpu[0].item<double>();
    sums.ce = on_cpu[1].item<double>();
    if (in_.distils()) sums.kl_positions = in_.hidden.size(0);
    if (in_.targets.defined()) sums.ce_positions = in_.targets.ge(0).sum().item<int64_t>();
    return sums;
  }

 private:
  const LossInputs& in_;
  torch::Tensor targets_;
  torch::Tensor sums_;  // [2] float64: KL and CE
};

/// Logits l become cap tanh(l / cap); `slopes`, where defined, its derivative.
void cap_logits(torch::Tensor& logits, double cap, torch::Tensor slopes) {
  logits.div_(cap).tanh_();
  if (slopes.defined()) at::square_out(slopes, logits).neg_().add_(1);
  logits.mul_(cap);
}

void check_inputs(const LossInputs& in) {
  check(in.hidden.dim() == 2 && in.output_weight.dim() == 2 &&
            in.hidden.size(1) == in.output_weight.size(1),
        "loss: hidden states and output weights do not fit");
  if (in.teacher_hidden.defined())
    check(in.teacher_hidden.size(0) == in.hidden.size(0) &&
              in.teacher_output.size(0) == in.output_weight.size(0),
          "loss: the teacher has ", in.teacher_output.size(0), " logits at ",
          in.teacher_hidden.size(0), " positions, the student ", in.output_weight.size(0), " at ",
          in.hidden.size(0));
  if (in.teacher_top.defined())
    check(!in.teacher_hidden.defined() && in.teacher_top.scalar_type() == torch::kUInt8 &&
              in.teacher_top.is_cpu() && in.teacher_top.is_contiguous() &&
              in.teacher_top.dim() == 2 && in.teacher_top.size(0) == in.hidden.size(0),
          "loss: the teacher's records must be bytes on the CPU, one row a position");
  if (!in.targets.defined()) return;
  check(in.targets.scalar_type() == torch::kInt64 && in.targets.is_contiguous() &&
            in.targets.is_cpu() && in.targets.numel() == in.hidden.size(0),
        "loss: targets must be int64 on the CPU, one a position");
  check(in.targets.numel() == 0 || (in.targets.max().item<int64_t>() < in.output_weight.size(0) &&
                                    in.targets.min().item<int64_t>() >= -1),
        "loss: a target outside the vocabulary of ", in.output_weight.size(0));
}

}  // namespace

LossSums& LossSums::operator+=(const LossSums& other) {
  kl += other.kl;
  ce += other.ce;
  kl_positions += other.kl_positions;
  ce_positions += other.ce_positions;
  return *this;
}

/// The matrix products around the logits, in the compute dtype; logits themselves are float32.
struct ChunkedLoss::Products {
  torch::Dtype dtype;

  torch::Tensor cast(const torch::Tensor& tensor) const { return tensor.to(dtype); }
  /// out = a b
  void multiply(torch::Tensor out, const torch::Tensor& a, const torch::Tensor& b) const {
    if (dtype == torch::kFloat32)
      at::mm_out(out, a, b);
    else
      out.copy_(at::mm(cast(a), cast(b)));
  }
  /// out += a b, or a new out
  void accumulate(torch::Tensor& out, const torch::Tensor& a, const torch::Tensor& b) const {
    if (!out.defined())
      out = at::mm(cast(a), cast(b)).to(torch::kFloat32);
    else if (dtype == torch::kFloat32)
      out.addmm_(a, b);
    else
      out.add_(at::mm(cast(a), cast(b)));
  }
};

ChunkedLoss::ChunkedLoss(int64_t chunk_positions, torch::Dtype dtype)
    : chunk_positions_(chunk_positions), dtype_(dtype) {
  if (chunk_positions < 1)
    fail_usage("loss.chunk_positions is ", chunk_positions, ", wanted 1 or more");
}

torch::Tensor& ChunkedLoss::logits_buffer(torch::Tensor& buffer, int64_t positions,
                                          const torch::Tensor& output) const {
  const int64_t vocab = output.size(0);
  if (!buffer.defined() || buffer.size(0) < positions || buffer.size(1) != vocab)
    buffer = torch::empty({positions, vocab}, output.options().dtype(torch::kFloat32));
  return buffer;
}

LossSums ChunkedLoss::run(const LossInputs& in, LossGradients* gradients) {
  const torch::NoGradGuard no_grad;
  check_inputs(in);
  const Products products{dtype_};
  const int64_t positions = in.hidden.size(0);
  const int64_t chunk = std::min(chunk_positions_, positions);
  const bool distil = in.teacher_hidden.defined();
  const int64_t vocab = in.output_weight.size(0);
  // Made and cast once here rather than in every chunk.
  const torch::Tensor output = values_of(in.output_weight, dtype_);
  const torch::Tensor teacher_output =
      distil ? values_of(in.teacher_output, dtype_) : torch::Tensor();
  const PositionWeights weights{static_cast<float>(in.kl_weight), static_cast<float>(in.ce_weight),
                                gradients != nullptr};
  if (gradients && !gradients->hidden.defined())
    gradients->hidden =
        torch::empty({positions, in.hidden.size(1)}, in.hidden.options().dtype(torch::kFloat32));

  LossSums sums;
  DeviceLoss device_loss(in);
  for (int64_t begin = 0; begin < positions; begin += chunk) {
    const int64_t count = std::min(chunk, positions - begin);
    const torch::Tensor hidden = in.hidden.narrow(0, begin, count);
    torch::Tensor student = logits_buffer(student_logits_, chunk, output).narrow(0, 0, count);
    products.multiply(student, hidden, output.t());
    torch::Tensor slopes;
    if (in.logit_cap > 0 && gradients)
      slopes = logits_buffer(slopes_, chunk, output).narrow(0, 0, count);
    if (in.logit_cap > 0) cap_logits(student, in.logit_cap, slopes);
    torch::Tensor teacher, records;
    if (in.teacher_top.defined()) records = in.teacher_top.narrow(0, begin, count);
    if (distil) {
      teacher = logits_buffer(teacher_logits_, chunk, output).narrow(0, 0, count);
      products.multiply(teacher, in.teacher_hidden.narrow(0, begin, count), teacher_output.t());
      if (in.teacher_logit_cap > 0) cap_logits(teacher, in.teacher_logit_cap, {});
    }
    if (student.is_cpu()) {
      const int64_t* targets =
          in.targets.defined() ? in.targets.const_data_ptr<int64_t>() + begin : nullptr;
      sums += rows_loss(student, targets, in.distils(),
                        records.defined() ? loss_of_records(records, vocab, weights)
                                          : loss_of_logits(teacher, vocab, weights));
    } else {
      if (records.defined())
        teacher = TopKRecords::of_bytes(records.size(1), vocab).logits_like(records, student);
      device_loss.add(student, teacher, begin, weights);
    }
    if (!gradients) continue;
    if (slopes.defined()) student.mul_(slopes);
    products.multiply(gradients->hidden.narrow(0, begin, count), student, output);
    if (gradients->of_output_weight)
      products.accumulate(gradients->output_weight, student.t(), hidden);
  }
  return in.hidden.is_cpu() ? sums : device_loss.sums();
}

LossShares loss_shares(const LossOptions& options) {
  if (options.kind == "kl") return {1, 0};
  if (options.kind == "ce") return {0, 1};
  if (options.kind != "mix")
    fail_usage("no loss '", options.kind, "'; kl, ce or mix",
               did_you_mean(options.kind, {"kl", "ce", "mix"}));
  if (!(options.ce_weight >= 0 && options.ce_weight <= 1))
    fail_usage("loss.ce_weight is ", options.ce_weight, ", wanted 0 to 1");
  return {1 - options.ce_weight, options.ce_weight};
}

}  // namespace nibble
