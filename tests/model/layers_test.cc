#include "model/layers.h"

#include <gtest/gtest.h>

#include "base/threads.h"
#include "model/kernels.h"
#include "quant/fake/torch_device.h"

namespace nibble {
namespace {

/// Largest |a - b| over the largest |b|.
double relative_error(const torch::Tensor& a, const torch::Tensor& b) {
  const torch::Tensor wanted = b.to(torch::kFloat64);
  return ((a.to(torch::kFloat64) - wanted).abs().max() / wanted.abs().max()).item<double>();
}

// Sums of up to a few hundred float32 terms: rounding grows with the square root of their number,
// times 6e-8.
constexpr double kTolerance = 2e-6;

torch::Tensor leaf(std::vector<int64_t> shape) { return torch::randn(shape).requires_grad_(true); }
torch::Tensor twin(const torch::Tensor& x) {
  return x.detach().to(torch::kFloat64).requires_grad_(true);
}

class Widths : public testing::TestWithParam<int64_t> {};

TEST_P(Widths, RmsNormAndItsGradients) {
  torch::manual_seed(3);
  torch::Tensor x = leaf({300, GetParam()}), weight = leaf({GetParam()});
  torch::Tensor x64 = twin(x), weight64 = twin(weight);
  const torch::Tensor y = rms_norm(x, weight, 1e-3);
  const torch::Tensor y64 = x64 / (x64.square().mean(-1, true) + 1e-3).sqrt() * weight64;
  EXPECT_LT(relative_error(y.detach(), y64.detach()), kTolerance);
  const torch::Tensor grad = torch::randn_like(y);
  y.backward(grad);
  y64.backward(grad.to(torch::kFloat64));
  EXPECT_LT(relative_error(x.grad(), x64.grad()), kTolerance);
  EXPECT_LT(relative_error(weight.grad(), weight64.grad()), kTolerance);
}

TEST_P(Widths, SwigluAndItsGradients) {
  torch::manual_seed(4);
  torch::Tensor gate = (torch::randn({7, GetParam()}) * 8).requires_grad_(true),
                up = leaf({7, GetParam()});
  torch::Tensor gate64 = twin(gate), up64 = twin(up);
  const torch::Tensor y = swiglu(gate, up), y64 = at::silu(gate64) * up64;
  EXPECT_LT(relative_error(y.detach(), y64.detach()), kTolerance);
  const torch::Tensor grad = torch::randn_like(y);
  y.backward(grad);
  y64.backward(grad.to(torch::kFloat64));
  EXPECT_LT(relative_error(gate.grad(), gate64.grad()), kTolerance);
  EXPECT_LT(relative_error(up.grad(), up64.grad()), kTolerance);
}

// Whole vectors of 16, none at all, and every kind of remainder.
INSTANTIATE_TEST_SUITE_P(Layers, Widths, testing::Values(1, 15, 16, 17, 64, 172, 576));

/// y, dL/dx and dL/dweight for leaves made anew.
std::vector<torch::Tensor> run_layer(const torch::Tensor& x, const torch::Tensor& weight,
                                     const torch::Tensor& grad, const auto& layer) {
  torch::Tensor own_x = x.clone().requires_grad_(), own_weight = weight.clone().requires_grad_();
  const torch::Tensor y = layer(own_x, own_weight);
  y.backward(grad);
  return {y.detach(), own_x.grad(), own_weight.grad()};
}

// What a GPU computes with: ATen's operations agree with our loops, on this device and on that.
TEST_P(Widths, AtenOperationsAgreeWithTheLoops) {
  torch::manual_seed(9);
  const torch::Tensor x = torch::randn({300, GetParam()}), up = torch::randn({300, GetParam()}),
                      weight = torch::randn({GetParam()}), grad = torch::randn({300, GetParam()});
  const auto norm = [](const auto& a, const auto& b) { return rms_norm(a, b, 1e-3); };
  const auto aten_norm = [](const auto& a, const auto& b) { return aten_rms_norm(a, b, 1e-3); };
  const auto loops = run_layer(x, weight, grad, norm), gated = run_layer(x, up, grad, swiglu);
  const bool has_gpu = cuda_gpus().count > 0;
  for (const Device& device : {Device{}, Device{true, 0}}) {
    if (device.cuda && !has_gpu) continue;
    const auto there = [&](const torch::Tensor& tensor) { return tensor.to(torch_device(device)); };
    const auto aten = run_layer(there(x), there(weight), there(grad), aten_norm);
    const auto aten_gated = run_layer(there(x), there(up), there(grad), aten_swiglu);
    for (size_t i = 0; i < aten.size(); ++i) {
      EXPECT_LT(relative_error(aten[i].cpu(), loops[i]), 2 * kTolerance) << "rms_norm " << i;
      EXPECT_LT(relative_error(aten_gated[i].cpu(), gated[i]), 2 * kTolerance) << "swiglu " << i;
    }
  }
}

TEST(ClampedSwiglu, AndItsGradientsOnBothSidesOfTheLimits) {
  torch::manual_seed(1);
  torch::Tensor gate = (7 * torch::randn({40, 50})).requires_grad_(true),
                up = (7 * torch::randn({40, 50})).requires_grad_(true);
  torch::Tensor gate64 = twin(gate), up64 = twin(up);
  const torch::Tensor below = at::where(gate64 > 7, 7.0, gate64);
  const torch::Tensor within = at::where(up64.abs() > 7, 7 * at::sign(up64), up64);
  const torch::Tensor y = clamped_swiglu(gate, up),
                      y64 = below / (1 + at::exp(-1.702 * below)) * (within + 1);
  EXPECT_LT(relative_error(y.detach(), y64.detach()), kTolerance);
  const torch::Tensor grad = torch::randn_like(y);
  y.backward(grad);
  y64.backward(grad.to(torch::kFloat64));
  EXPECT_LT(relative_error(gate.grad(), gate64.grad()), kTolerance);
  EXPECT_LT(relative_error(up.grad(), up64.grad()), kTolerance);
}

TEST(Swiglu, FarOutGatesNeitherOverflowNorVanish) {
  const torch::Tensor gate = torch::tensor({-1000.f, -90.f, -20.f, 0.f, 20.f, 90.f, 1000.f});
  const torch::Tensor y = swiglu(gate, torch::ones_like(gate));
  const torch::Tensor wanted = at::silu(gate.to(torch::kFloat64));
  for (int64_t i = 0; i < gate.numel(); ++i)
    EXPECT_NEAR(y[i].item<float>(), wanted[i].item<double>(),
                1e-6 * std::abs(wanted[i].item<double>()) + 1e-30);
}

TEST(RmsNorm, DoesNotDependOnTheThreads) {
  torch::manual_seed(5);
  const torch::Tensor x = torch::randn({1000, 48}), weight = torch::randn({48}),
                      grad = torch::randn({1000, 48});
  const auto gradient = [&] {
    torch::Tensor own = weight.clone().requires_grad_(true);
    rms_norm(x, own, 1e-5).backward(grad);
    return own.grad();
  };
  const int threads = num_threads();
  const torch::Tensor many = gradient();
  set_num_threads(1);
  const torch::Tensor one = gradient();
  set_num_threads(threads);
  EXPECT_TRUE(torch::equal(many, one));
}

TEST(Project, GradientsAccumulateInPlace) {
  torch::manual_seed(6);
  torch::Tensor x = leaf({20, 12}), a = leaf({5, 12}), b = leaf({7, 12});
  const torch::Tensor grad_a = torch::randn({20, 5}), grad_b = torch::randn({20, 7});
  const auto run = [&] {
    const auto y = project(x, {a, b}, torch::kFloat32);
    torch::autograd::backward({y[0], y[1]}, {grad_a, grad_b});
  };
  run();
  const torch::Tensor wanted_x = grad_a.mm(a.detach()) + grad_b.mm(b.detach());
  const torch::Tensor wanted_a = grad_a.t().mm(x.detach());
  EXPECT_LT(relative_error(x.grad(), wanted_x), kTolerance);
  EXPECT_LT(relative_error(a.grad(), wanted_a), kTolerance);
  EXPECT_LT(relative_error(b.grad(), grad_b.t().mm(x.detach())), kTolerance);
  const void* storage = a.grad().data_ptr();
  run();
  EXPECT_EQ(a.grad().data_ptr(), storage);
  EXPECT_LT(relative_error(a.grad(), 2 * wanted_a), kTolerance);
}

TEST(Project, ComputedWeightsGetTheirGradientTheUsualWay) {
  torch::manual_seed(7);
  torch::Tensor base = leaf({5, 12});
  const torch::Tensor x = torch::randn({20, 12}), grad = torch::randn({20, 5});
  linear(x, base * 3, {}, torch::kFloat32).backward(grad);
  EXPECT_LT(relative_error(base.grad(), 3 * grad.t().mm(x)), kTolerance);
}

TEST(Project, WeightsTrainThoughTheirInputDoesNot) {
  torch::Tensor weight = leaf({5, 12});
  const torch::Tensor x = torch::randn({20, 12}), grad = torch::randn({20, 5});
  linear(x, weight, {}, torch::kFloat32).backward(grad);
  EXPECT_LT(relative_error(weight.grad(), grad.t().mm(x)), kTolerance);
}

TEST(Project, OutputsThatNobodyUsesCostNothing) {
  torch::Tensor a = leaf({5, 12}), b = leaf({7, 12});
  project(torch::randn({20, 12}), {a, b}, torch::kFloat32)[0].sum().backward();
  EXPECT_TRUE(a.grad().defined());
  EXPECT_FALSE(b.grad().defined());
}

TEST(Project, FrozenWeightsGetNone) {
  torch::Tensor x = leaf({20, 12});
  const torch::Tensor weight = torch::randn({5, 12});
  linear(x, weight, {}, torch::kFloat32).sum().backward();
  EXPECT_FALSE(weight.grad().defined());
  EXPECT_TRUE(x.grad().defined());
}

TEST(Project, Bfloat16IsACastInsideTheMatmul) {
  torch::manual_seed(8);
  const torch::Tensor x = torch::randn({20, 64}), weight = torch::randn({5, 64});
  const torch::Tensor y = linear(x, weight, {}, torch::kBFloat16);
  EXPECT_EQ(y.scalar_type(), torch::kFloat32);
  const torch::Tensor rounded =
      at::linear(x.to(torch::kBFloat16), weight.to(torch::kBFloat16)).to(torch::kFloat32);
  EXPECT_TRUE(torch::equal(y, rounded));
  EXPECT_FALSE(torch::equal(y, at::linear(x, weight)));
}

TEST(EmbedTokens, GradientsAddUpInAFixedOrder) {
  torch::manual_seed(10);
  const torch::Tensor tokens = torch::randint(7, {4096}, torch::kInt64);
  const torch::Tensor grad = torch::randn({4096, 64});
  torch::Tensor first;
  for (int run = 0; run < 10; ++run) {
    torch::Tensor table = torch::zeros({7, 64}).requires_grad_();
    embed_tokens(table, tokens).backward(grad);
    if (run == 0) first = table.grad();
    ASSERT_TRUE(torch::equal(table.grad(), first)) << "run " << run;
  }
}

TEST(EmbedTokens, GradientsOfRepeatedTokensAddUp) {
  torch::Tensor table = leaf({6, 3});
  const torch::Tensor tokens = torch::tensor({4, 1, 4}, torch::kInt64);
  const torch::Tensor y = embed_tokens(table, tokens);
  EXPECT_TRUE(torch::equal(y.detach(), table.detach().index_select(0, tokens)));
  const torch::Tensor grad = torch::randn({3, 3});
  y.backward(grad);
  EXPECT_TRUE(torch::equal(table.grad()[4], grad[0] + grad[2]));
  EXPECT_TRUE(torch::equal(table.grad()[1], grad[1]));
  EXPECT_EQ(table.grad()[0].abs().sum().item<float>(), 0);
}

}  // namespace
}  // namespace nibble
