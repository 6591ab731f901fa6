#include "model/tiled_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

namespace nibble {
namespace {

// Sums of some hundreds of float32 terms.
constexpr double kTolerance = 1e-5;

torch::Tensor twin(const torch::Tensor& x) {
  return x.detach().to(torch::kFloat64).requires_grad_(true);
}

double relative_error(const torch::Tensor& a, const torch::Tensor& b) {
  return ((a.to(torch::kFloat64) - b).abs().max() / b.abs().max()).item<double>();
}

/// The formula, all scores at once.
torch::Tensor plain_attention(const torch::Tensor& q, const torch::Tensor& k,
                              const torch::Tensor& v, const AttentionRule& rule) {
  const int64_t rows = q.size(2), positions = k.size(2), shared = q.size(1) / k.size(1);
  torch::Tensor scores = at::matmul(q, k.repeat_interleave(shared, 1).transpose(2, 3)) * rule.scale;
  if (rule.cap > 0) scores = rule.cap * at::tanh(scores / rule.cap);
  const torch::Tensor behind =
      at::arange(positions - rows, positions).unsqueeze(1) - at::arange(positions);
  torch::Tensor unseen = behind < 0;
  if (rule.window > 0) unseen = unseen.logical_or(behind >= rule.window);
  scores = scores.masked_fill(unseen, -INFINITY);
  if (rule.sinks.defined())
    scores = at::cat({scores, rule.sinks.view({1, -1, 1, 1}).expand({q.size(0), -1, rows, 1})}, 3);
  const torch::Tensor shares = at::softmax(scores, -1).narrow(3, 0, positions);
  return at::matmul(shares, v.repeat_interleave(shared, 1));
}

/// Positions, the last of them that ask, a window, a cap, whether there are sinks.
class Rules : public testing::TestWithParam<std::tuple<int64_t, int64_t, int64_t, double, bool>> {};
// More queries than have scores at once, and windows shorter and longer than those.
INSTANTIATE_TEST_SUITE_P(
    TiledAttention, Rules,
    testing::Values(std::tuple(600, 600, 0, 0.0, true), std::tuple(600, 600, 100, 0.0, true),
                    std::tuple(600, 300, 400, 0.0, true), std::tuple(50, 1, 0, 0.0, true),
                    std::tuple(600, 600, 100, 3.0, false), std::tuple(600, 600, 0, 3.0, true)));

TEST_P(Rules, ForwardAndGradientsFollowTheFormula) {
  const auto [positions, rows, window, cap, has_sinks] = GetParam();
  torch::manual_seed(5);
  const auto leaf = [](std::vector<int64_t> shape) {
    return (2 * torch::randn(shape)).requires_grad_(true);
  };
  const torch::Tensor q = leaf({2, 6, rows, 8}), k = leaf({2, 3, positions, 8}),
                      v = leaf({2, 3, positions, 8}), sinks = leaf({6});
  const torch::Tensor q64 = twin(q), k64 = twin(k), v64 = twin(v), sinks64 = twin(sinks);
  AttentionRule rule{window, 0.3, cap};
  if (has_sinks) rule.sinks = sinks;
  const torch::Tensor out = tiled_attention(q, k, v, rule);
  if (has_sinks) rule.sinks = sinks64;
  const torch::Tensor wanted = plain_attention(q64, k64, v64, rule);
  EXPECT_LT(relative_error(out.detach(), wanted.detach()), kTolerance);
  const torch::Tensor grad = torch::randn(out.sizes());
  out.backward(grad);
  wanted.backward(grad.to(torch::kFloat64));
  EXPECT_LT(relative_error(q.grad(), q64.grad()), kTolerance);
  EXPECT_LT(relative_error(k.grad(), k64.grad()), kTolerance);
  EXPECT_LT(relative_error(v.grad(), v64.grad()), kTolerance);
  if (!has_sinks) return;
  // A sum over all queries of numbers of both signs.
  EXPECT_LT(relative_error(sinks.grad(), sinks64.grad()), 10 * kTolerance);
}

}  // namespace
}  // namespace nibble
