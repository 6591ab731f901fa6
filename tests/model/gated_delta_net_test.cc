// The gated delta net in chunks against its formulas, position by position in float64.
#include "model/gated_delta_net.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"

namespace nibble {
namespace {

// Chunks of 64 positions: sums of up to a few hundred float32 terms of unit size, and a triangular
// system that passes rounding on from row to row.
constexpr double kTolerance = 2e-5;

/// Largest |a - b| over the largest |b|; 0 where both are 0.
double relative_error(const torch::Tensor& a, const torch::Tensor& b) {
  const torch::Tensor wanted = b.detach().to(torch::kFloat64);
  const double difference = (a.detach().to(torch::kFloat64) - wanted).abs().max().item<double>();
  return difference == 0 ? 0 : difference / wanted.abs().max().item<double>();
}

torch::Tensor twin(const torch::Tensor& x) {
  return x.detach().to(torch::kFloat64).requires_grad_(true);
}

struct Rule {
  torch::Tensor q, k, v, g, beta;
  std::vector<torch::Tensor> all() const { return {q, k, v, g, beta}; }
  Rule slice(int64_t begin, int64_t end) const {
    const auto part = [&](const torch::Tensor& x) { return x.slice(0, begin, end); };
    return {part(q), part(k), part(v), part(g), part(beta)};
  }
  Rule twins() const { return {twin(q), twin(k), twin(v), twin(g), twin(beta)}; }
};

/// Decays from hardly any to nearly all that is there, changing from position to position.
Rule some_rule(int64_t rows, int64_t key_heads, int64_t value_heads, int64_t d) {
  torch::manual_seed(5);
  const auto unit = [](const torch::Tensor& x) { return x / x.norm(2, -1, true); };
  return {unit(torch::randn({rows, key_heads, d})).requires_grad_(true),
          unit(torch::randn({rows, key_heads, d})).requires_grad_(true),
          torch::randn({rows, value_heads, d}).requires_grad_(true),
          (-torch::exp(3 * torch::randn({rows, value_heads}) - 3)).requires_grad_(true),
          torch::rand({rows, value_heads}).requires_grad_(true)};
}

/// One document: [T, H * d] and the state [H, d, d] that it ends with.
std::pair<torch::Tensor, torch::Tensor> plain_rule(const Rule& in) {
  const int64_t rows = in.v.size(0), heads = in.v.size(1), d = in.v.size(2);
  torch::Tensor state = at::zeros({heads, d, d}, torch::kFloat64);
  std::vector<torch::Tensor> outputs;
  for (int64_t t = 0; t < rows; ++t) {
    const torch::Tensor q = in.q[t].repeat({heads / in.q.size(1), 1}),
                        k = in.k[t].repeat({heads / in.k.size(1), 1});
    state = state * in.g[t].exp().view({heads, 1, 1});
    const torch::Tensor found = at::einsum("hij,hi->hj", {state, k});
    const torch::Tensor learned = (in.v[t] - found) * in.beta[t].unsqueeze(-1);
    state = state + at::einsum("hi,hj->hij", {k, learned});
    outputs.push_back(at::einsum("hij,hi->hj", {state, q}).flatten());
  }
  return {at::stack(outputs), state};
}

Packing packing_of(const std::vector<int64_t>& lengths) {
  Packing packing;
  std::vector<torch::Tensor> positions;
  for (const int64_t length : lengths) {
    positions.push_back(at::arange(length, torch::kInt64));
    packing.lengths.push_back(length);
    packing.longest = std::max(packing.longest, length);
  }
  packing.positions = at::cat(positions);
  return packing;
}

class Documents : public testing::TestWithParam<std::vector<int64_t>> {};

TEST_P(Documents, RuleAndItsGradientsFollowTheFormulas) {
  const Packing packing = packing_of(GetParam());
  const Rule rule = some_rule(packing.positions.size(0), 2, 6, 8), rule64 = rule.twins();
  const torch::Tensor y = gated_delta_rule(rule.q, rule.k, rule.v, rule.g, rule.beta,
                                           chunk_documents(packing, torch::kCPU));
  std::vector<torch::Tensor> parts;
  int64_t begin = 0;
  for (const int64_t length : GetParam()) {
    parts.push_back(plain_rule(rule64.slice(begin, begin + length)).first);
    begin += length;
  }
  const torch::Tensor y64 = at::cat(parts);
  EXPECT_LT(relative_error(y, y64), kTolerance);
  const torch::Tensor grad = torch::randn_like(y);
  y.backward(grad);
  y64.backward(grad.to(torch::kFloat64));
  for (size_t i = 0; i < 5; ++i)
    EXPECT_LT(relative_error(rule.all()[i].grad(), rule64.all()[i].grad()), kTolerance) << i;
}

TEST_P(Documents, ConvolutionAndItsGradientsStayWithinADocument) {
  const Packing packing = packing_of(GetParam());
  torch::manual_seed(6);
  torch::Tensor x = torch::randn({packing.positions.size(0), 5}).requires_grad_(true),
                kernel = torch::randn({5, 4}).requires_grad_(true);
  torch::Tensor x64 = twin(x), kernel64 = twin(kernel);
  const torch::Tensor y = causal_convolution(x, kernel, packing.positions);
  std::vector<torch::Tensor> rows;
  int64_t begin = 0;
  for (const int64_t length : GetParam()) {
    for (int64_t t = 0; t < length; ++t) {
      torch::Tensor sum = at::zeros({5}, torch::kFloat64);
      for (int64_t lag = 0; lag <= std::min<int64_t>(t, 3); ++lag)
        sum = sum + x64[begin + t - lag] * kernel64.select(1, 3 - lag);
      rows.push_back(sum);
    }
    begin += length;
  }
  const torch::Tensor y64 = at::stack(rows), grad = torch::randn_like(y);
  EXPECT_LT(relative_error(y, y64), kTolerance);
  y.backward(grad);
  y64.backward(grad.to(torch::kFloat64));
  EXPECT_LT(relative_error(x.grad(), x64.grad()), kTolerance);
  EXPECT_LT(relative_error(kernel.grad(), kernel64.grad()), kTolerance);
}

// Within a chunk, whole chunks, and a mixture of both with documents of one position.
INSTANTIATE_TEST_SUITE_P(GatedDeltaNet, Documents,
                         testing::Values(std::vector<int64_t>{1}, std::vector<int64_t>{40},
                                         std::vector<int64_t>{128, 128},
                                         std::vector<int64_t>{3, 200, 1, 64, 65, 1}));

TEST(GatedDeltaNet, ADocumentGoesOnFromItsState) {
  const Rule rule = some_rule(150, 2, 4, 8);
  const torch::NoGradGuard no_grad;
  const auto [y64, end64] = plain_rule(rule.twins());
  torch::Tensor state;
  int64_t begin = 0;
  for (const int64_t length : {1, 70, 1, 64, 14}) {
    const Rule part = rule.slice(begin, begin + length);
    const torch::Tensor y =
        gated_delta_rule(part.q, part.k, part.v, part.g, part.beta,
                         chunk_documents(packing_of({length}), torch::kCPU), &state);
    EXPECT_LT(relative_error(y, y64.slice(0, begin, begin + length)), kTolerance) << begin;
    begin += length;
  }
  EXPECT_LT(relative_error(state, end64), kTolerance);
}

// Sums of decays within a chunk of which one passes 10,000: a later difference of two of them is
// still exact, for which float32's 24 bits would not do.
TEST(GatedDeltaNet, AHardDecayLeavesLaterOnesExact) {
  Rule rule = some_rule(64, 1, 1, 8);
  {
    const torch::NoGradGuard no_grad;
    rule.g.fill_(-0.01);
    rule.g[5].fill_(-1e4);
  }
  const torch::Tensor y = gated_delta_rule(rule.q, rule.k, rule.v, rule.g, rule.beta,
                                           chunk_documents(packing_of({64}), torch::kCPU));
  EXPECT_LT(relative_error(y, plain_rule(rule.twins()).first), 2e-6);
}

class Sizes : public testing::Test {
 protected:
  Sizes() {
    for (const auto& [key, value] :
         std::vector<std::pair<std::string, uint32_t>>{{"conv_kernel", 4},
                                                       {"state_size", 8},
                                                       {"group_count", 2},
                                                       {"time_step_rank", 6},
                                                       {"inner_size", 48}})
      metadata_.set("qwen35.ssm." + key, value);
  }
  std::string complaint() {
    try {
      read_delta_net_sizes(metadata_, "qwen35", 5);
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }
  GgufMetadata metadata_;
};

TEST_F(Sizes, LayersAreAllButEachFourth) {
  const DeltaNetSizes sizes = read_delta_net_sizes(metadata_, "qwen35", 5);
  EXPECT_EQ(sizes.layers, (std::vector<bool>{true, true, true, false, true}));
  EXPECT_EQ(sizes.mixed(), 2 * 16 + 48);
  metadata_.set("qwen35.full_attention_interval", uint32_t{2});
  EXPECT_EQ(read_delta_net_sizes(metadata_, "qwen35", 5).layers,
            (std::vector<bool>{true, false, true, false, true}));
}

TEST_F(Sizes, ALayerListGoesBeforeTheInterval) {
  metadata_.set("qwen35.attention.recurrent_layers",
                GgufArray{GgufValueType::kBool, std::vector<uint8_t>{0, 1, 0, 1, 1}});
  EXPECT_EQ(read_delta_net_sizes(metadata_, "qwen35", 5).layers,
            (std::vector<bool>{false, true, false, true, true}));
  metadata_.set("qwen35.attention.recurrent_layers",
                GgufArray{GgufValueType::kBool, std::vector<uint8_t>{0, 1}});
  EXPECT_NE(complaint().find("qwen35.attention.recurrent_layers' wants 5 elements, has 2"),
            std::string::npos)
      << complaint();
}

TEST_F(Sizes, ImpossibleKeysAreNamed) {
  const GgufMetadata good = metadata_;
  for (const std::string name :
       {"conv_kernel", "state_size", "group_count", "time_step_rank", "inner_size"}) {
    metadata_ = good;
    metadata_.set("qwen35.ssm." + name, uint32_t{0});
    EXPECT_NE(complaint().find("qwen35.ssm." + name + "' must lie in"), std::string::npos)
        << complaint();
    // So that products overflow nothing.
    metadata_.set("qwen35.ssm." + name, uint32_t{1} << 31);
    EXPECT_NE(complaint().find("qwen35.ssm." + name + "' must lie in"), std::string::npos);
  }
  metadata_ = good;
  metadata_.set("qwen35.ssm.group_count", uint32_t{4});
  EXPECT_NE(complaint().find("qwen35.ssm.group_count' (4) must divide"), std::string::npos);
  metadata_ = good;
  metadata_.set("qwen35.ssm.inner_size", uint32_t{40});
  EXPECT_NE(complaint().find("qwen35.ssm.inner_size' is 40, 6 heads of 8 have 48"),
            std::string::npos)
      << complaint();
  metadata_ = good;
  metadata_.set("qwen35.full_attention_interval", uint32_t{0});
  EXPECT_NE(complaint().find("full_attention_interval' must be positive"), std::string::npos);
}

}  // namespace
}  // namespace nibble
