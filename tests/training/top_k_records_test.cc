// Records of the likeliest tokens, what they decode to, and their loss, against the formulas in
// float64 and finite differences of them.
#include "training/top_k_records.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/float16.h"
#include "training/aten_softmax_loss.h"

namespace nibble {
namespace {

struct Case {
  int64_t vocab, k;
  double spread;
};

/// KL of the outcomes for logits in float64.
double outcomes_kl(const std::vector<double>& student, const TopOutcomes& teacher) {
  const double most = *std::max_element(student.begin(), student.end());
  double sum = 0, top = 0, kl = 0;
  for (const double logit : student) sum += std::exp(logit - most);
  std::vector<bool> is_top(student.size());
  for (const int64_t id : teacher.ids) is_top[id] = true;
  double others = 0;
  for (size_t i = 0; i < student.size(); ++i)
    (is_top[i] ? top : others) += std::exp(student[i] - most) / sum;
  for (size_t i = 0; i < teacher.ids.size(); ++i)
    kl += std::exp(teacher.logs[i]) *
          (teacher.logs[i] - (student[teacher.ids[i]] - most - std::log(sum)));
  if (others > 0) kl += std::exp(teacher.others) * (teacher.others - std::log(others));
  return kl;
}

std::vector<double> doubles(const torch::Tensor& row) {
  const float* values = row.const_data_ptr<float>();
  return {values, values + row.numel()};
}

const std::byte* row_of(const torch::Tensor& records, int64_t row) {
  return static_cast<const std::byte*>(records.const_data_ptr()) + row * records.size(1);
}

class TopKRecordsTest : public testing::TestWithParam<Case> {
 protected:
  TopKRecordsTest() {
    torch::manual_seed(7);
    student_ = torch::randn({kRows, GetParam().vocab}) * GetParam().spread;
    // What a file's float16 distances hold without rounding.
    teacher_ = (student_ + torch::randn({kRows, GetParam().vocab}) * 0.5) * 64;
    teacher_ = teacher_.round() / 64;
    records_ = layout_.encode(teacher_.clone());
  }
  static constexpr int64_t kRows = 3;
  TopKRecords layout_{GetParam().k, GetParam().vocab};
  torch::Tensor student_, teacher_, records_;
};

INSTANTIATE_TEST_SUITE_P(All, TopKRecordsTest,
                         testing::Values(Case{1, 1, 1}, Case{2, 1, 1}, Case{17, 4, 2},
                                         Case{300, 16, 1}, Case{300, 300, 1}, Case{49152, 64, 3},
                                         Case{70000, 5, 2}));

TEST_P(TopKRecordsTest, HoldTheLikeliestTokensAndWhatIsLeft) {
  const auto [vocab, k, spread] = GetParam();
  EXPECT_EQ(layout_.bytes(), 4 + k * (vocab > 65536 ? 6 : 4));
  EXPECT_EQ(TopKRecords::of_bytes(layout_.bytes(), vocab).bytes(), layout_.bytes());
  const torch::Tensor logs = at::log_softmax(teacher_.to(torch::kFloat64), 1);
  for (int64_t row = 0; row < kRows; ++row) {
    const TopOutcomes outcomes = layout_.decode(row_of(records_, row));
    const std::vector<double> wanted(logs[row].const_data_ptr<double>(),
                                     logs[row].const_data_ptr<double>() + vocab);
    ASSERT_EQ(outcomes.ids.size(), static_cast<size_t>(k));
    EXPECT_TRUE(std::is_sorted(outcomes.ids.begin(), outcomes.ids.end()));
    double left = 1, sum = std::exp(outcomes.others), least = 0;
    for (int64_t i = 0; i < k; ++i) {
      const double log = wanted[outcomes.ids[i]];
      // Distances are exact here; the others' sum is of float32 exponentials.
      EXPECT_NEAR(outcomes.logs[i], log, 1e-6);
      left -= std::exp(log);
      sum += std::exp(outcomes.logs[i]);
      least = std::min(least, log);
    }
    EXPECT_NEAR(sum, 1, 1e-12);
    EXPECT_NEAR(std::exp(outcomes.others), std::max(left, 0.0), 1e-6);
    EXPECT_EQ(outcomes.others == -std::numeric_limits<double>::infinity(), k == vocab);
    // No other token is likelier than those.
    const auto likelier =
        std::count_if(wanted.begin(), wanted.end(), [&](double log) { return log > least; });
    EXPECT_LT(likelier, k);
  }
}

TEST_P(TopKRecordsTest, LossAndGradientAreThoseOfTheOutcomes) {
  const auto [vocab, k, spread] = GetParam();
  const double rounding = 8 * std::numeric_limits<float>::epsilon() * (1 + 4 * spread);
  for (int64_t row = 0; row < kRows; ++row) {
    const TopOutcomes outcomes = layout_.decode(row_of(records_, row));
    std::vector<double> logits = doubles(student_[row]);
    torch::Tensor gradient = student_[row].clone();
    const int64_t target = row == 1 ? -1 : vocab / 2;
    const PositionLoss loss = top_outcomes_loss(gradient.mutable_data_ptr<float>(), outcomes, vocab,
                                                target, {0.75f, 0.5f});
    const double kl = outcomes_kl(logits, outcomes);
    EXPECT_NEAR(loss.kl, kl, rounding);
    EXPECT_GE(loss.kl, 0);
    const double log_sum = at::logsumexp(student_[row].to(torch::kFloat64), 0).item<double>();
    EXPECT_NEAR(loss.ce, target < 0 ? 0 : log_sum - logits[target], rounding);
    // Central differences: all logits of a small vocabulary, the first tokens of each kind of a
    // large one.
    for (int64_t i = 0; i < std::min<int64_t>(vocab, 40) + k; ++i) {
      const int64_t id = i < k ? outcomes.ids[i] : i - k;
      constexpr double kStep = 1e-5;
      const double at = logits[id];
      logits[id] = at + kStep;
      const double above = outcomes_kl(logits, outcomes);
      logits[id] = at - kStep;
      const double below = outcomes_kl(logits, outcomes);
      logits[id] = at;
      const double softmax = std::exp(at - log_sum);
      const double ce = target < 0 ? 0 : 0.5 * (softmax - (id == target ? 1 : 0));
      // Steps of 1e-5 leave 1e-10 of curvature and 1e-10 of cancellation.
      EXPECT_NEAR(gradient[id].item<float>(), 0.75 * (above - below) / (2 * kStep) + ce,
                  rounding + 1e-9)
          << "logit " << id;
    }
  }
}

TEST_P(TopKRecordsTest, NoMoreIsSeenThanOfTheWholeTeacher) {
  const auto [vocab, k, spread] = GetParam();
  const double rounding = 8 * std::numeric_limits<float>::epsilon() * (1 + 4 * spread);
  for (int64_t row = 0; row < kRows; ++row) {
    torch::Tensor a = student_[row].clone(), b = a.clone(), teacher = teacher_[row].clone();
    const PositionLoss whole = softmax_loss(
        a.mutable_data_ptr<float>(), teacher.mutable_data_ptr<float>(), vocab, 0, {1.0f, 1.0f});
    const PositionLoss seen = top_outcomes_loss(
        b.mutable_data_ptr<float>(), layout_.decode(row_of(records_, row)), vocab, 0, {1.0f, 1.0f});
    EXPECT_LE(seen.kl, whole.kl + rounding);
    EXPECT_NEAR(seen.ce, whole.ce, rounding);
    if (k < vocab) continue;
    EXPECT_NEAR(seen.kl, whole.kl, rounding);
    EXPECT_LT((a - b).abs().max().item<double>(), rounding);
  }
}

// What a GPU computes.
TEST_P(TopKRecordsTest, AsLogitsTheyHaveTheSameLoss) {
  const auto [vocab, k, spread] = GetParam();
  // As in aten_softmax_loss_test.cc, and the others' logits are made of float32 sums.
  const double rounding = 32 * std::numeric_limits<float>::epsilon() * (1 + 4 * spread);
  const torch::Tensor teacher = layout_.logits_like(records_, student_);
  torch::Tensor gradient = student_.clone();
  const torch::Tensor sums = aten_softmax_loss(gradient, teacher, {}, {0.75f, 0.0f});
  double kl = 0;
  torch::Tensor wanted = student_.clone();
  for (int64_t row = 0; row < kRows; ++row)
    kl += top_outcomes_loss(wanted[row].mutable_data_ptr<float>(),
                            layout_.decode(row_of(records_, row)), vocab, -1, {0.75f, 0.0f})
              .kl;
  EXPECT_NEAR(sums[0].item<double>(), kl, kRows * rounding);
  EXPECT_LT((gradient - wanted).abs().max().item<double>(), rounding);
}

TEST(TopKRecords, OfEqualLogitsTheFirstAreTaken) {
  const TopKRecords layout(3, 10);
  const torch::Tensor records = layout.encode(torch::zeros({1, 10}));
  const TopOutcomes outcomes = layout.decode(row_of(records, 0));
  EXPECT_EQ(outcomes.ids, (std::vector<int64_t>{0, 1, 2}));
  EXPECT_NEAR(std::exp(outcomes.others), 0.7, 1e-6);
}

TEST(TopKRecords, ATeacherThatIsTheStudentTeachesNothing) {
  const TopKRecords layout(4, 50);
  torch::manual_seed(2);
  torch::Tensor student = (torch::randn({1, 50}) * 64).round() / 64;
  const torch::Tensor records = layout.encode(student.clone());
  const PositionLoss loss = top_outcomes_loss(student.mutable_data_ptr<float>(),
                                              layout.decode(row_of(records, 0)), 50, -1, {1, 1});
  EXPECT_LT(loss.kl, 1e-6);
  EXPECT_LT(student.abs().max().item<float>(), 1e-6);
}

// A student so sure of the likeliest token that nothing of the others' share would be left of 1.
TEST(TopKRecords, AShareOfTheOthersThatIsTinyKeepsItsDigits) {
  const TopKRecords layout(1, 3);
  const torch::Tensor records = layout.encode(torch::tensor({{0.0f, -1.0f, -1.0f}}));
  const TopOutcomes outcomes = layout.decode(row_of(records, 0));
  std::vector<float> student = {40.0f, 0.0f, 0.0f};
  const std::vector<double> logits(student.begin(), student.end());
  const PositionLoss loss = top_outcomes_loss(student.data(), outcomes, 3, -1, {1, 1});
  EXPECT_NEAR(loss.kl,
              std::exp(outcomes.logs[0]) * outcomes.logs[0] +
                  std::exp(outcomes.others) * (outcomes.others + 40 - std::log(2)),
              1e-5);
  EXPECT_NEAR(student[0], std::exp(outcomes.others), 1e-6);
  EXPECT_NEAR(student[1], -std::exp(outcomes.others) / 2, 1e-6);
}

TEST(TopKRecords, NotFiniteShows) {
  const TopKRecords layout(2, 8);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    for (const int64_t place : {0, 7}) {
      torch::Tensor logits = torch::arange(8, torch::kFloat32).unsqueeze(0);
      logits[0][place] = bad;
      EXPECT_THROW(layout.encode(logits.clone()), Error);
      const torch::Tensor records = layout.encode(torch::arange(8, torch::kFloat32).unsqueeze(0));
      EXPECT_FALSE(std::isfinite(top_outcomes_loss(logits.mutable_data_ptr<float>(),
                                                   layout.decode(row_of(records, 0)), 8, -1, {1, 1})
                                     .kl));
    }
}

TEST(TopKRecords, WhatIsNoRecordIsRefused) {
  const TopKRecords layout(2, 8);
  const torch::Tensor sound = layout.encode(torch::arange(8, torch::kFloat32).unsqueeze(0));
  const auto refused = [&](int64_t offset, auto value, const std::string& message) {
    torch::Tensor bad = sound.clone();
    std::memcpy(static_cast<std::byte*>(bad.mutable_data_ptr()) + offset, &value, sizeof value);
    try {
      layout.decode(row_of(bad, 0));
      ADD_FAILURE() << "taken: " << message;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
    }
  };
  EXPECT_NO_THROW(layout.decode(row_of(sound, 0)));
  refused(0, std::numeric_limits<float>::quiet_NaN(), "the others have nan");
  refused(0, std::numeric_limits<float>::infinity(), "the others have inf");
  refused(4, float_to_float16(0.5f), "token 6 is 0.5 from the likeliest");
  refused(6, uint16_t{0x7e00}, "token 7 is nan from the likeliest");
  refused(6, uint16_t{0xfc00}, "token 7 is -inf from the likeliest");
  refused(10, uint16_t{8}, "token 8 follows 6 of 8");
  refused(10, uint16_t{6}, "token 6 follows 6 of 8");
  refused(8, uint16_t{0xffff}, "token 65535 follows -1 of 8");
}

TEST(TopKRecords, OfNoVocabulary) {
  EXPECT_THROW(TopKRecords(0, 8), Error);
  EXPECT_THROW(TopKRecords(9, 8), Error);
  for (const int64_t bytes : {0, 4, 5, 9, 40}) EXPECT_THROW(TopKRecords::of_bytes(bytes, 8), Error);
}

}  // namespace
}  // namespace nibble
