#include "eval/softmax_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

namespace nibble {
namespace {

std::vector<float> some_logits(int64_t vocab, float spread, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

std::vector<double> log_probs(const std::vector<float>& logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  std::vector<double> result;
  for (const float logit : logits) result.push_back(logit - max - std::log(sum));
  return result;
}

struct Row {
  float step, lowest;
  std::vector<uint16_t> codes;
  double log_prob(int64_t i) const { return lowest + static_cast<double>(step) * codes[i]; }
};

Row encode(const std::vector<float>& logits) {
  const int64_t vocab = logits.size();
  std::vector<uint16_t> row(base_row_size(vocab), 0xdead);
  encode_base_row(logits.data(), vocab, row.data());
  Row result;
  std::memcpy(&result.step, row.data(), 4);
  std::memcpy(&result.lowest, row.data() + 2, 4);
  result.codes.assign(row.begin() + 4, row.begin() + 4 + vocab);
  if (vocab % 2) {
    EXPECT_EQ(row.back(), 0);
  }
  return result;
}

class Vocabularies : public testing::TestWithParam<int64_t> {};

TEST_P(Vocabularies, LogSumExpAndLoss) {
  for (const float spread : {0.0f, 1.0f, 30.0f}) {
    const std::vector<float> logits = some_logits(GetParam(), spread, 1);
    const std::vector<double> wanted = log_probs(logits);
    for (const int64_t token : {int64_t{0}, GetParam() / 2, GetParam() - 1}) {
      // Float exponentials (2e-7 each) summed in blocks of 64 a lane, and the float32 difference
      // of a logit and the largest one.
      EXPECT_NEAR(negative_log_likelihood(logits.data(), GetParam(), token), -wanted[token],
                  2e-6 - 6e-8 * wanted[token]);
    }
  }
}

TEST_P(Vocabularies, CodesAreWithinHalfAStep) {
  const std::vector<float> logits = some_logits(GetParam(), 3.0f, 2);
  const std::vector<double> wanted = log_probs(logits);
  const Row row = encode(logits);
  const double floor = *std::max_element(wanted.begin(), wanted.end()) - 16;
  for (int64_t i = 0; i < GetParam(); ++i) {
    // Half a step, and float32 rounding of numbers up to 32.
    EXPECT_NEAR(row.log_prob(i), std::max(wanted[i], floor), 0.5 * row.step + 1e-5) << i;
  }
}

TEST_P(Vocabularies, DivergenceFollowsItsFormula) {
  const std::vector<float> base = some_logits(GetParam(), 4.0f, 3);
  std::vector<float> other = some_logits(GetParam(), 0.5f, 4);
  for (int64_t i = 0; i < GetParam(); ++i) other[i] += base[i];
  std::vector<uint16_t> coded(base_row_size(GetParam()));
  encode_base_row(base.data(), GetParam(), coded.data());
  const Row row = encode(base);
  const std::vector<double> q = log_probs(other);
  double kld = 0;
  int64_t top = 0, top_base = 0;
  for (int64_t i = 0; i < GetParam(); ++i) {
    if (row.log_prob(i) > -16) kld += std::exp(row.log_prob(i)) * (row.log_prob(i) - q[i]);
    if (q[i] > q[top]) top = i;
    if (row.codes[i] > row.codes[top_base]) top_base = i;
  }
  const int32_t token = static_cast<int32_t>(GetParam() / 3);
  const TokenDivergence found = token_divergence(other.data(), coded.data(), GetParam(), token);
  // Float32 log-probabilities of size 16 (1e-6 each), weighted by probabilities that sum to 1.
  EXPECT_NEAR(found.kld, kld, 4e-6);
  EXPECT_NEAR(found.nll, -q[token], 4e-6);
  EXPECT_NEAR(found.nll_base, -row.log_prob(token), 4e-6);
  EXPECT_NEAR(found.dp, std::exp(q[token]) - std::exp(row.log_prob(token)), 2e-6);
  EXPECT_EQ(found.same_top, top == top_base);
}

// Whole vectors of 16, remainders, an odd vocabulary, more than one summation block (1024).
INSTANTIATE_TEST_SUITE_P(SoftmaxRows, Vocabularies,
                         testing::Values(2, 7, 16, 33, 1024, 1040, 5001));

TEST(SoftmaxRows, FlatRowHasStepZero) {
  const std::vector<float> logits(9, 2.5f);
  const Row row = encode(logits);
  EXPECT_EQ(row.step, 0.0f);
  for (int64_t i = 0; i < 9; ++i) EXPECT_NEAR(row.log_prob(i), -std::log(9.0), 1e-6);
}

TEST(SoftmaxRows, FirstOfEqualMaximaIsTheTop) {
  const std::vector<float> base = {0, 3, 3, 1}, same = {0, 2, 2, 1}, other = {0, 1, 2, 1};
  std::vector<uint16_t> row(base_row_size(4));
  encode_base_row(base.data(), 4, row.data());
  EXPECT_TRUE(token_divergence(same.data(), row.data(), 4, 0).same_top);
  EXPECT_FALSE(token_divergence(other.data(), row.data(), 4, 0).same_top);
}

}  // namespace
}  // namespace nibble
