// The loss in ATen's operations against the loops of softmax_loss.h, on every device there is: what
// trains on a GPU is the loss that trains on the CPU.
#include "training/aten_softmax_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "quant/fake/torch_device.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 9;

struct Loss {
  double kl = 0, ce = 0;
  torch::Tensor gradient;
};

/// Row by row.
Loss loss_by_loops(const torch::Tensor& student, const torch::Tensor& teacher,
                   const torch::Tensor& targets, const PositionWeights& weights) {
  Loss loss;
  loss.gradient = student.clone();
  torch::Tensor scratch = teacher.defined() ? teacher.clone() : teacher;
  for (int64_t row = 0; row < student.size(0); ++row) {
    const PositionLoss position =
        softmax_loss(loss.gradient[row].data_ptr<float>(),
                     scratch.defined() ? scratch[row].data_ptr<float>() : nullptr, student.size(1),
                     targets.defined() ? targets[row].item<int64_t>() : -1, weights);
    loss.kl += position.kl;
    loss.ce += position.ce;
  }
  return loss;
}

class AtenSoftmaxLoss : public testing::TestWithParam<std::tuple<bool, int64_t, float>> {
 protected:
  void SetUp() override {
    const CudaGpus gpus = cuda_gpus();
    if (std::get<0>(GetParam()) && gpus.count == 0) GTEST_SKIP() << gpus.problem;
    torch::manual_seed(1);
    student_ = torch::randn({kRows, vocab()}) * spread();
    teacher_ = student_ + torch::randn({kRows, vocab()}) * 0.3;
    targets_ = torch::randint(vocab(), {kRows}, torch::kInt64);
    targets_[2] = -1;
    targets_[kRows - 1] = -1;
  }
  int64_t vocab() const { return std::get<1>(GetParam()); }
  float spread() const { return std::get<2>(GetParam()); }

  Loss loss_by_aten(const torch::Tensor& teacher, const torch::Tensor& targets,
                    const PositionWeights& weights) const {
    const torch::Device device = torch_device({std::get<0>(GetParam()), 0});
    const auto there = [&](const torch::Tensor& tensor) {
      return tensor.defined() ? tensor.to(device, /*non_blocking=*/false, /*copy=*/true) : tensor;
    };
    torch::Tensor student = there(student_);
    const torch::Tensor sums =
        aten_softmax_loss(student, there(teacher), there(targets), weights).cpu();
    return {sums[0].item<double>(), sums[1].item<double>(), student.cpu()};
  }
  void expect_same(const torch::Tensor& teacher, const torch::Tensor& targets,
                   const PositionWeights& weights) const {
    const Loss wanted = loss_by_loops(student_, teacher, targets, weights);
    const Loss found = loss_by_aten(teacher, targets, weights);
    // Logit distances of size `spread` are rounded to float32 before they are weighted and summed,
    // in both.
    const double rounding =
        8 * std::numeric_limits<float>::epsilon() * (1 + 4 * static_cast<double>(spread()));
    EXPECT_NEAR(found.kl, wanted.kl, kRows * rounding);
    EXPECT_NEAR(found.ce, wanted.ce, kRows * rounding);
    EXPECT_LT((found.gradient - wanted.gradient).abs().max().item<double>(), rounding);
  }

  torch::Tensor student_, teacher_, targets_;
};

INSTANTIATE_TEST_SUITE_P(Devices, AtenSoftmaxLoss,
                         testing::Combine(testing::Bool(), testing::Values(7, 300, 5000),
                                          testing::Values(1.0f, 30.0f)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) ? "CUDA_" : "CPU_") +
                                  std::to_string(std::get<1>(info.param)) + "_" +
                                  std::to_string(static_cast<int>(std::get<2>(info.param)));
                         });

TEST_P(AtenSoftmaxLoss, EqualsTheLoops) {
  expect_same(teacher_, targets_, {0.75f, 0.5f});
  expect_same(teacher_, {}, {0.75f, 0.0f});
  expect_same({}, targets_, {0.0f, 0.5f});
}

TEST_P(AtenSoftmaxLoss, LeavesLogitsAloneWithoutGradient) {
  const PositionWeights weights = {1.0f, 1.0f, false};
  const Loss loss = loss_by_aten(teacher_, targets_, weights);
  EXPECT_TRUE(torch::equal(loss.gradient, student_));
  const Loss with = loss_by_aten(teacher_, targets_, {1.0f, 1.0f, true});
  EXPECT_EQ(loss.kl, with.kl);
  EXPECT_EQ(loss.ce, with.ce);
}

TEST_P(AtenSoftmaxLoss, NotFiniteShows) {
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    for (torch::Tensor* logits : {&student_, &teacher_}) {
      const torch::Tensor sound = logits->clone();
      (*logits)[1][3] = bad;
      EXPECT_FALSE(std::isfinite(loss_by_aten(teacher_, targets_, {1, 1}).kl));
      *logits = sound;
    }
}

}  // namespace
}  // namespace nibble
