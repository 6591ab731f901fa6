// One position's loss and gradient against the formulas in float64.
#include "training/softmax_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace nibble {
namespace {

std::vector<float> random_logits(int64_t count, float spread, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

std::vector<double> log_softmax(const std::vector<float>& logits) {
  double most = -std::numeric_limits<double>::infinity(), sum = 0;
  for (float logit : logits) most = std::max<double>(most, logit);
  for (float logit : logits) sum += std::exp(logit - most);
  std::vector<double> result;
  for (float logit : logits) result.push_back(logit - most - std::log(sum));
  return result;
}

struct Case {
  int64_t vocab;
  float spread;
};

class SoftmaxLossTest : public testing::TestWithParam<Case> {};
// Vocabularies of every remainder by the sixteen lanes, and logits far enough apart for
// exponentials to vanish.
INSTANTIATE_TEST_SUITE_P(All, SoftmaxLossTest,
                         testing::Values(Case{1, 1}, Case{2, 1}, Case{15, 3}, Case{16, 3},
                                         Case{17, 3}, Case{512, 5}, Case{1025, 2}, Case{49152, 4},
                                         Case{300, 60}));

TEST_P(SoftmaxLossTest, EqualsTheFormulas) {
  const auto [vocab, spread] = GetParam();
  std::vector<float> student = random_logits(vocab, spread, 1), teacher = student;
  const std::vector<float> noise = random_logits(vocab, 0.3f, 2);
  for (int64_t i = 0; i < vocab; ++i) teacher[i] += noise[i];
  const int64_t target = vocab / 2;
  const std::vector<double> s = log_softmax(student), t = log_softmax(teacher);
  double kl = 0;
  for (int64_t i = 0; i < vocab; ++i) kl += std::exp(t[i]) * (t[i] - s[i]);

  const PositionLoss loss =
      softmax_loss(student.data(), teacher.data(), vocab, target, {0.75f, 0.5f});
  // Logit distances of size `spread` are rounded to float32 before they are weighted and summed.
  const double rounding = 4 * std::numeric_limits<float>::epsilon() * (1 + spread);
  EXPECT_NEAR(loss.kl, kl, rounding);
  EXPECT_NEAR(loss.ce, -s[target], rounding);
  for (int64_t i = 0; i < vocab; ++i) {
    const double gradient = 0.75 * (std::exp(s[i]) - std::exp(t[i])) +
                            0.5 * (std::exp(s[i]) - (i == target ? 1.0 : 0.0));
    ASSERT_NEAR(student[i], gradient, rounding) << "logit " << i;
  }
}

TEST(SoftmaxLoss, WithoutTeacherOrTarget) {
  const std::vector<float> logits = random_logits(100, 2, 3);
  const std::vector<double> s = log_softmax(logits);
  std::vector<float> row = logits;
  const PositionLoss ce = softmax_loss(row.data(), nullptr, 100, 7, {1.0f, 1.0f});
  EXPECT_EQ(ce.kl, 0);
  EXPECT_NEAR(ce.ce, -s[7], 1e-5);  // float32 exponentials
  EXPECT_NEAR(row[7], std::exp(s[7]) - 1, 1e-6);

  row = logits;
  std::vector<float> teacher = logits;
  const PositionLoss same = softmax_loss(row.data(), teacher.data(), 100, -1, {1.0f, 1.0f});
  EXPECT_EQ(same.ce, 0);
  EXPECT_EQ(same.kl, 0);
  for (float gradient : row) EXPECT_EQ(gradient, 0);
}

TEST(SoftmaxLoss, SameLossWithoutGradient) {
  std::vector<float> a = random_logits(333, 2, 4), b = a, teacher = random_logits(333, 2, 5),
                     again = teacher;
  const PositionLoss with = softmax_loss(a.data(), teacher.data(), 333, 3, {1.0f, 1.0f, true});
  const PositionLoss without = softmax_loss(b.data(), again.data(), 333, 3, {1.0f, 1.0f, false});
  EXPECT_EQ(with.kl, without.kl);
  EXPECT_EQ(with.ce, without.ce);
}

TEST(SoftmaxLoss, NotFiniteShows) {
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    for (bool in_teacher : {false, true}) {
      std::vector<float> student = random_logits(64, 1, 6), teacher = random_logits(64, 1, 7);
      (in_teacher ? teacher : student)[20] = bad;
      EXPECT_FALSE(std::isfinite(softmax_loss(student.data(), teacher.data(), 64, 1, {1, 1}).kl));
    }
}

}  // namespace
}  // namespace nibble
