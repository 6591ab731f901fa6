// The chunked loss against the same loss written plainly with full logits and autograd.
#include "training/loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "base/error.h"
#include "training/top_k_records.h"

namespace nibble {
namespace {

constexpr int64_t kPositions = 37, kWidth = 24, kTeacherWidth = 40, kVocab = 129;

LossInputs random_inputs() {
  torch::manual_seed(5);
  LossInputs inputs;
  inputs.hidden = torch::randn({kPositions, kWidth});
  inputs.output_weight = torch::randn({kVocab, kWidth}) * 0.3;
  inputs.teacher_hidden = torch::randn({kPositions, kTeacherWidth});
  inputs.teacher_output = torch::randn({kVocab, kTeacherWidth}) * 0.3;
  inputs.targets = torch::randint(kVocab, {kPositions}, torch::kInt64);
  inputs.targets[3] = -1;
  inputs.targets[kPositions - 1] = -1;
  inputs.kl_weight = 0.7 / kPositions;
  inputs.ce_weight = 0.3 / (kPositions - 2);
  return inputs;
}

struct Plain {
  double kl, ce;
  torch::Tensor hidden, output_weight;  // gradients of kl_weight * kl + ce_weight * ce
};

/// Everything at once, in float64.
Plain plain_loss(const LossInputs& in) {
  const torch::Tensor hidden = in.hidden.to(torch::kFloat64).requires_grad_();
  const torch::Tensor weight = in.output_weight.to(torch::kFloat64).requires_grad_();
  const auto capped = [](const torch::Tensor& x, double cap) {
    return cap > 0 ? cap * at::tanh(x / cap) : x;
  };
  const torch::Tensor student = at::log_softmax(capped(hidden.mm(weight.t()), in.logit_cap), 1);
  const torch::Tensor teacher_logits =
      in.teacher_hidden.to(torch::kFloat64).mm(in.teacher_output.to(torch::kFloat64).t());
  const torch::Tensor teacher = at::log_softmax(capped(teacher_logits, in.teacher_logit_cap), 1);
  const torch::Tensor kl = (teacher.exp() * (teacher - student)).sum();
  const torch::Tensor ce =
      at::nll_loss(student, in.targets, {}, at::Reduction::Sum, /*ignore_index=*/-1);
  (in.kl_weight * kl + in.ce_weight * ce).backward();
  return {kl.item<double>(), ce.item<double>(), hidden.grad(), weight.grad()};
}

/// Largest difference relative to the largest value.
double distance(const torch::Tensor& a, const torch::Tensor& b) {
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

/// Products of float32 sums over width and vocabulary: a hundred roundings at most.
constexpr double kFloatRounding = 100 * std::numeric_limits<float>::epsilon();

/// The student's and the teacher's cap of logits, which have a standard deviation of 1.5 and 1.9.
class ChunkedLossCaps : public testing::TestWithParam<std::pair<double, double>> {};
INSTANTIATE_TEST_SUITE_P(ChunkedLoss, ChunkedLossCaps,
                         testing::Values(std::pair{0.0, 0.0}, std::pair{2.0, 3.0},
                                         std::pair{1.5, 0.0}));

TEST_P(ChunkedLossCaps, EqualsPlainLossInAnyChunks) {
  LossInputs inputs = random_inputs();
  std::tie(inputs.logit_cap, inputs.teacher_logit_cap) = GetParam();
  const Plain plain = plain_loss(inputs);
  for (int64_t chunk : {1, 5, 36, 37, 1000}) {
    LossGradients gradients;
    ChunkedLoss loss(chunk, torch::kFloat32);
    const LossSums sums = loss.run(inputs, &gradients);
    EXPECT_NEAR(sums.kl, plain.kl, kFloatRounding * plain.kl) << "chunk " << chunk;
    EXPECT_NEAR(sums.ce, plain.ce, kFloatRounding * plain.ce);
    EXPECT_EQ(sums.kl_positions, kPositions);
    EXPECT_EQ(sums.ce_positions, kPositions - 2);
    EXPECT_LT(distance(gradients.hidden, plain.hidden), kFloatRounding);
    EXPECT_LT(distance(gradients.output_weight, plain.output_weight), kFloatRounding);

    const LossSums alone = loss.run(inputs, nullptr);
    EXPECT_EQ(alone.kl, sums.kl);
    EXPECT_EQ(alone.ce, sums.ce);
  }
}

/// Teachers of which the K likeliest tokens are known; with all of them the loss is the plain one.
TEST_P(ChunkedLossCaps, OfRecordsEqualsThePlainLossInAnyChunks) {
  LossInputs inputs = random_inputs();
  std::tie(inputs.logit_cap, inputs.teacher_logit_cap) = GetParam();
  for (const int64_t k : {int64_t{1}, int64_t{20}, kVocab}) {
    LossInputs of_records = inputs;
    torch::Tensor logits = inputs.teacher_hidden.mm(inputs.teacher_output.t());
    if (inputs.teacher_logit_cap > 0)
      logits = inputs.teacher_logit_cap * at::tanh(logits / inputs.teacher_logit_cap);
    of_records.teacher_top = TopKRecords(k, kVocab).encode(logits.clone());
    of_records.teacher_hidden = of_records.teacher_output = torch::Tensor();

    const torch::Tensor hidden = inputs.hidden.to(torch::kFloat64).requires_grad_();
    const torch::Tensor weight = inputs.output_weight.to(torch::kFloat64).requires_grad_();
    torch::Tensor student = hidden.mm(weight.t());
    if (inputs.logit_cap > 0) student = inputs.logit_cap * at::tanh(student / inputs.logit_cap);
    student = at::log_softmax(student, 1);
    const torch::Tensor teacher = at::softmax(logits.to(torch::kFloat64), 1);
    const torch::Tensor ids = std::get<1>(at::topk(teacher, k, 1));
    const auto share_of_others = [&](const torch::Tensor& p) {
      return p.scatter(1, ids, 0).sum(1);
    };
    const torch::Tensor top = teacher.gather(1, ids);
    torch::Tensor kl = (top * (top.log() - student.gather(1, ids))).sum();
    if (k < kVocab) {
      const torch::Tensor others = share_of_others(teacher);
      kl = kl + (others * (others / share_of_others(student.exp())).log()).sum();
    }
    const torch::Tensor ce =
        at::nll_loss(student, inputs.targets, {}, at::Reduction::Sum, /*ignore_index=*/-1);
    (inputs.kl_weight * kl + inputs.ce_weight * ce).backward();

    // A record's float16 rounds a distance below 16 by 2^-8 at most, a probability by as large a
    // share.
    const double rounding = std::ldexp(1, -8);
    for (int64_t chunk : {1, 36, 1000}) {
      LossGradients gradients;
      const LossSums sums = ChunkedLoss(chunk, torch::kFloat32).run(of_records, &gradients);
      EXPECT_NEAR(sums.kl, kl.item<double>(), rounding * kl.item<double>()) << "k " << k;
      EXPECT_NEAR(sums.ce, ce.item<double>(), kFloatRounding * ce.item<double>());
      EXPECT_EQ(sums.kl_positions, kPositions);
      EXPECT_LT(distance(gradients.hidden, hidden.grad()), rounding);
      EXPECT_LT(distance(gradients.output_weight, weight.grad()), rounding);
    }
  }
}

TEST(ChunkedLoss, AddsToTheOutputGradient) {
  const LossInputs inputs = random_inputs();
  LossGradients once, twice;
  ChunkedLoss loss(16, torch::kFloat32);
  loss.run(inputs, &once);
  loss.run(inputs, &twice);
  twice.hidden = torch::Tensor();
  loss.run(inputs, &twice);
  EXPECT_LT(distance(twice.output_weight, 2 * once.output_weight), kFloatRounding);
  EXPECT_LT(distance(twice.hidden, once.hidden), kFloatRounding);
}

TEST(ChunkedLoss, CrossEntropyNeedsNoTeacher) {
  LossInputs inputs = random_inputs();
  inputs.kl_weight = 0;
  const Plain plain = plain_loss(inputs);
  inputs.teacher_hidden = inputs.teacher_output = torch::Tensor();
  LossGradients gradients;
  const LossSums sums = ChunkedLoss(8, torch::kFloat32).run(inputs, &gradients);
  EXPECT_EQ(sums.kl_positions, 0);
  EXPECT_NEAR(sums.ce, plain.ce, kFloatRounding * plain.ce);
  EXPECT_LT(distance(gradients.hidden, plain.hidden), kFloatRounding);
  // A position without a next token teaches nothing.
  EXPECT_EQ(gradients.hidden[3].abs().max().item<float>(), 0);
}

TEST(ChunkedLoss, BFloat16IsACastOfTheProducts) {
  const LossInputs inputs = random_inputs();
  const Plain plain = plain_loss(inputs);
  LossGradients gradients;
  const LossSums sums = ChunkedLoss(16, torch::kBFloat16).run(inputs, &gradients);
  // bfloat16 keeps 8 bits: logits are off by 2^-9 of their size, the loss by as much.
  EXPECT_NEAR(sums.kl, plain.kl, 0.02 * plain.kl);
  EXPECT_NE(sums.kl, ChunkedLoss(16, torch::kFloat32).run(inputs, nullptr).kl);
  EXPECT_LT(distance(gradients.hidden, plain.hidden), 0.05);
  EXPECT_EQ(gradients.output_weight.scalar_type(), torch::kFloat32);
}

TEST(ChunkedLoss, RefusesWhatDoesNotFit) {
  ChunkedLoss loss(16, torch::kFloat32);
  LossInputs inputs = random_inputs();
  inputs.teacher_output = inputs.teacher_output.narrow(0, 0, kVocab - 1);
  EXPECT_THROW(loss.run(inputs, nullptr), Error);
  inputs = random_inputs();
  inputs.teacher_top = torch::zeros({kPositions, 8}, torch::kUInt8);  // beside a whole teacher
  EXPECT_THROW(loss.run(inputs, nullptr), Error);
  inputs.teacher_hidden = torch::Tensor();
  inputs.teacher_top = torch::full({kPositions, 8}, 255, torch::kUInt8);  // no records
  EXPECT_THROW(loss.run(inputs, nullptr), Error);
  inputs = random_inputs();
  inputs.targets[5] = kVocab;
  EXPECT_THROW(loss.run(inputs, nullptr), Error);
  EXPECT_THROW(ChunkedLoss(0, torch::kFloat32), Error);
}

TEST(LossShares, ComeFromTheKind) {
  LossOptions options;
  EXPECT_EQ(loss_shares(options).kl, 1);
  options.kind = "ce";
  EXPECT_EQ(loss_shares(options).kl, 0);
  EXPECT_EQ(loss_shares(options).ce, 1);
  options.kind = "mix";
  options.ce_weight = 0.25;
  EXPECT_EQ(loss_shares(options).kl, 0.75);
  EXPECT_EQ(loss_shares(options).ce, 0.25);
  options.ce_weight = 1.5;
  EXPECT_THROW(loss_shares(options), Error);
}

}  // namespace
}  // namespace nibble
