// AdamW against its formula in float64, clipping, groups, and going on from saved moments.
#include "training/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"

namespace nibble {
namespace {

constexpr int64_t kCount = 1000;

OptimizerOptions options_with_decay() {
  OptimizerOptions options;
  options.learning_rate = 1e-2;
  options.scale_learning_rate = 5e-2;
  options.weight_decay = 0.1;
  options.clip_norm = 0;
  return options;
}

/// The formula in the header, step by step in float64.
struct Reference {
  torch::Tensor value, m, v;
  int steps = 0;

  explicit Reference(const torch::Tensor& start)
      : value(start.to(torch::kFloat64)),
        m(torch::zeros_like(value)),
        v(torch::zeros_like(value)) {}
  void step(const torch::Tensor& gradient, double rate, double decay, const OptimizerOptions& o) {
    const torch::Tensor g = gradient.to(torch::kFloat64);
    ++steps;
    m = o.beta1 * m + (1 - o.beta1) * g;
    v = o.beta2 * v + (1 - o.beta2) * g * g;
    value = value * (1 - rate * decay);
    value = value - rate * (m / (1 - std::pow(o.beta1, steps))) /
                        ((v / (1 - std::pow(o.beta2, steps))).sqrt() + o.epsilon);
  }
};

double distance(const torch::Tensor& a, const torch::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST(AdamW, FollowsTheFormulaInEachGroup) {
  torch::manual_seed(1);
  const OptimizerOptions options = options_with_decay();
  std::vector<torch::Tensor> values;
  std::vector<Reference> references;
  AdamW optimizer(options);
  const ParameterGroup groups[] = {ParameterGroup::kScales, ParameterGroup::kMatrix,
                                   ParameterGroup::kVector, ParameterGroup::kMatrix};
  for (ParameterGroup group : groups) {
    values.push_back(torch::randn({kCount}));
    references.emplace_back(values.back());
    optimizer.add("w" + std::to_string(values.size()), group, values.back());
  }
  for (int step = 0; step < 20; ++step) {
    std::vector<torch::Tensor> gradients;
    for (size_t i = 0; i < values.size(); ++i) {
      gradients.push_back(torch::randn({kCount}));
      const double rate = groups[i] == ParameterGroup::kScales ? 5e-2 : 1e-2;
      references[i].step(gradients[i], 0.5 * rate, groups[i] == ParameterGroup::kMatrix ? 0.1 : 0,
                         options);
    }
    optimizer.step(gradients, 0.5, 1.0);
  }
  // A float32 rounding of values of size 4 and of the update in each of 20 steps.
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT_LT(distance(values[i], references[i].value),
              20 * 4 * std::numeric_limits<float>::epsilon());
}

TEST(AdamW, RelativeRatesAreSharesOfEachTensorsSize) {
  OptimizerOptions options = options_with_decay();
  options.relative = true;
  torch::manual_seed(4);
  // Twice the weights, the same gradients: with epsilon too small to matter, twice the step.
  const torch::Tensor before = torch::randn({kCount});
  torch::Tensor once = before.clone(), twice = 2 * before, vector = 2 * before, scales = 2 * before;
  AdamW optimizer(options);
  optimizer.add("once", ParameterGroup::kMatrix, once);
  optimizer.add("twice", ParameterGroup::kMatrix, twice);
  optimizer.add("vector", ParameterGroup::kVector, vector);
  optimizer.add("scales", ParameterGroup::kScales, scales);
  const double size = std::sqrt(before.square().mean().item<double>());
  Reference matrix(before), undecayed(2 * before), own_rate(2 * before);
  for (int step = 0; step < 5; ++step) {
    const torch::Tensor gradient = torch::randn({kCount});
    optimizer.step({gradient.clone(), gradient.clone(), gradient.clone(), gradient.clone()}, 1, 1);
    matrix.step(gradient, 1e-2 * size, 0.1 / size, options);
    undecayed.step(gradient, 2e-2 * size, 0, options);
    own_rate.step(gradient, 5e-2, 0, options);
  }
  EXPECT_LT(distance(once, matrix.value), 1e-6);  // float32
  EXPECT_LT(distance(twice, 2 * matrix.value), 2e-6);
  EXPECT_LT(distance(vector, undecayed.value), 2e-6);
  EXPECT_LT(distance(scales, own_rate.value), 2e-6);
}

TEST(AdamW, CoarsenessMultipliesRelativeRates) {
  OptimizerOptions options = options_with_decay();
  options.relative = true;
  torch::manual_seed(4);
  const torch::Tensor before = torch::randn({kCount}), gradient = torch::randn({kCount});
  torch::Tensor fine = before.clone(), coarse = before.clone(), scales = before.clone();
  AdamW one(options), quarter(options, /*coarseness=*/0.25);
  one.add("coarse", ParameterGroup::kVector, coarse);
  quarter.add("fine", ParameterGroup::kVector, fine);
  quarter.add("scales", ParameterGroup::kScales, scales);
  one.step({gradient.clone()}, 1, 1);
  quarter.step({gradient.clone(), gradient.clone()}, 1, 1);
  Reference own_rate(before);
  own_rate.step(gradient, 0.25 * 5e-2, 0, options);
  EXPECT_LT(distance(4 * (fine - before), coarse - before), 1e-6);
  EXPECT_LT(distance(scales, own_rate.value), 1e-6);
}

TEST(AdamW, RelativeRatesStayThoseOfTheStart) {
  OptimizerOptions options = options_with_decay();
  options.relative = true;
  const torch::Tensor gradient = torch::ones({4});
  torch::Tensor value = torch::full({4}, 2.0f), other = torch::full({4}, 0.5f);
  AdamW first(options), second(options);
  first.add("w", ParameterGroup::kMatrix, value);
  second.add("w", ParameterGroup::kMatrix, other);  // as a resumed run may start
  other.copy_(value);
  second.restore(first.moments(), 0);
  first.step({gradient.clone()}, 1, 1);
  second.step({gradient.clone()}, 1, 1);
  EXPECT_TRUE(at::equal(value, other));
  EXPECT_FALSE(at::equal(value, torch::full({4}, 2.0f)));
}

TEST(AdamW, ClipsToTheNorm) {
  OptimizerOptions options = options_with_decay();
  options.clip_norm = 2;
  options.epsilon = 1;  // so that the size of a gradient is not divided out
  torch::manual_seed(2);
  torch::Tensor value = torch::randn({kCount});
  const torch::Tensor gradient = torch::randn({kCount}), before = value.clone();
  const double norm = gradient.norm().item<double>();
  ASSERT_GT(norm, 2);
  Reference clipped(before), whole(before);
  clipped.step(gradient * (2 / norm), 1e-2, 0.1, options);
  whole.step(gradient, 1e-2, 0.1, options);
  AdamW optimizer(options);
  optimizer.add("w", ParameterGroup::kMatrix, value);
  optimizer.step({gradient.clone()}, 1, norm);
  EXPECT_LT(distance(value, clipped.value), 1e-6);  // float32
  EXPECT_GT(distance(value, whole.value), 1e-4);

  // Below the limit nothing is scaled.
  torch::Tensor small = before.clone();
  AdamW other(options);
  other.add("w", ParameterGroup::kMatrix, small);
  other.step({gradient * (1 / norm)}, 1, 1.0);
  Reference unscaled(before);
  unscaled.step(gradient * (1 / norm), 1e-2, 0.1, options);
  EXPECT_LT(distance(small, unscaled.value), 1e-6);
}

TEST(AdamW, WithoutGradientNothingMoves) {
  torch::Tensor used = torch::ones({4}), unused = torch::ones({4});
  AdamW optimizer(options_with_decay());
  optimizer.add("unused", ParameterGroup::kMatrix, unused);
  optimizer.add("used", ParameterGroup::kMatrix, used);
  optimizer.step({torch::Tensor(), torch::ones({4})}, 1, 1);
  EXPECT_TRUE(at::equal(unused, torch::ones({4})));
  EXPECT_FALSE(at::equal(used, torch::ones({4})));
  EXPECT_THROW(optimizer.step({torch::ones({4})}, 1, 1), Error);
}

TEST(AdamW, GoesOnFromSavedMoments) {
  torch::manual_seed(3);
  std::vector<torch::Tensor> gradients;
  for (int i = 0; i < 6; ++i) gradients.push_back(torch::randn({kCount}));
  torch::Tensor value = torch::randn({kCount});
  AdamW whole(options_with_decay());
  whole.add("w", ParameterGroup::kMatrix, value);
  for (int i = 0; i < 3; ++i) whole.step({gradients[i].clone()}, 1, 1);

  torch::Tensor resumed_value = value.clone();
  std::map<std::string, torch::Tensor> saved;
  for (const auto& [name, moment] : whole.moments()) saved[name] = moment.clone();
  AdamW resumed(options_with_decay());
  resumed.add("w", ParameterGroup::kMatrix, resumed_value);
  resumed.restore(saved, 3);
  for (int i = 3; i < 6; ++i) {
    whole.step({gradients[i].clone()}, 1, 1);
    resumed.step({gradients[i].clone()}, 1, 1);
  }
  EXPECT_TRUE(at::equal(value, resumed_value));

  saved.erase("w:moment2");
  EXPECT_THROW(resumed.restore(saved, 3), Error);
}

// An expert that no token reaches for a while.
TEST(AdamW, GoesOnFromEachParametersOwnSteps) {
  torch::Tensor value = torch::ones({4}), rare = torch::ones({4});
  AdamW whole(options_with_decay());
  whole.add("w", ParameterGroup::kMatrix, value);
  whole.add("rare", ParameterGroup::kMatrix, rare);
  for (int i = 0; i < 5; ++i)
    whole.step({torch::ones({4}), i == 3 ? torch::ones({4}) : torch::Tensor()}, 1, 1);
  torch::Tensor other_value = value.clone(), other_rare = rare.clone();
  AdamW resumed(options_with_decay());
  resumed.add("w", ParameterGroup::kMatrix, other_value);
  resumed.add("rare", ParameterGroup::kMatrix, other_rare);
  std::map<std::string, torch::Tensor> saved;
  for (const auto& [name, moment] : whole.moments()) saved[name] = moment.clone();
  resumed.restore(saved, 5);
  for (AdamW* each : {&whole, &resumed}) each->step({torch::ones({4}), torch::ones({4})}, 1, 1);
  EXPECT_TRUE(at::equal(value, other_value));
  EXPECT_TRUE(at::equal(rare, other_rare));
}

}  // namespace
}  // namespace nibble
