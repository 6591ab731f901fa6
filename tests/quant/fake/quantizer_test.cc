// Parity law and gradients of the fake quantizer, for every format and mode, on the CPU and on a
// GPU. Parity is equality of bits: what trains is what ships.
#include "quant/fake/quantizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "quant/fake/torch_device.h"
#include "quant/format/rows.h"
#include "tests/quant/format/cuda_formats.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 5, kLength = 1024;
constexpr ScaleMode kModes[] = {ScaleMode::kDynamic, ScaleMode::kLearned, ScaleMode::kFrozen};

/// Weights of very different magnitudes, some rows of zeros and constants among them.
torch::Tensor random_weights(int64_t seed) {
  torch::manual_seed(seed);
  torch::Tensor weights =
      torch::randn({kRows, kLength}) *
      torch::exp(torch::randn({kRows, kLength / 32}) * 2).repeat_interleave(32, 1);
  if (seed % 3 == 0) weights[1].zero_();
  if (seed % 3 == 1) weights[2].fill_(-0.25f);
  return weights;
}

/// W^, on the CPU.
torch::Tensor materialized(FakeQuantizer& quantizer) {
  torch::Tensor out =
      torch::full_like(quantizer.weights(), std::numeric_limits<float>::quiet_NaN());
  quantizer.materialize(out);
  return out.cpu();
}

torch::Tensor decoded(const FakeQuantizer& quantizer) {
  torch::Tensor out = torch::empty(quantizer.weights().sizes());
  const std::vector<std::byte> blocks = quantizer.blocks();
  decode_tensor(quantizer.format().type, blocks,
                {out.mutable_data_ptr<float>(), static_cast<size_t>(out.numel())});
  return out;
}

bool same_bits(const torch::Tensor& on_a, const torch::Tensor& on_b) {
  const torch::Tensor a = on_a.cpu(), b = on_b.cpu();
  return a.sizes() == b.sizes() &&
         std::memcmp(a.const_data_ptr<float>(), b.const_data_ptr<float>(), a.nbytes()) == 0;
}

/// As training moves them: weights and ratios away from where they started, some ratios far or
/// through zero.
void perturb(FakeQuantizer& quantizer) {
  quantizer.weights().add_(torch::randn_like(quantizer.weights()) * 0.1);
  torch::Tensor& ratios = quantizer.scale_ratios();
  if (!ratios.defined()) return;
  ratios.add_(torch::randn_like(ratios) * 0.2);
  ratios.select(1, 0).fill_(-0.5f);
  ratios.select(1, 1).fill_(1e-9f);
}

class QuantizerTest : public testing::TestWithParam<DeviceFormat> {
 protected:
  void SetUp() override { NIBBLE_SKIP_WITHOUT_DEVICE(GetParam().cuda); }
  const Format& format() const { return formats()[GetParam().index]; }
  /// Those that the format's scales can have.
  std::vector<ScaleMode> modes() const {
    if (format().has_byte_scales) return {ScaleMode::kDynamic};
    return {std::begin(kModes), std::end(kModes)};
  }
  torch::Device device() const { return torch_device({GetParam().cuda, 0}); }
  torch::Tensor random_weights(int64_t seed) const {
    return nibble::random_weights(seed).to(device());
  }
};

INSTANTIATE_TEST_SUITE_P(All, QuantizerTest, testing::ValuesIn(all_on_both_devices()),
                         [](const auto& info) { return info.param.name(); });

/// With modes other than dynamic.
using LearningTest = QuantizerTest;
INSTANTIATE_TEST_SUITE_P(All, LearningTest,
                         testing::ValuesIn(on_both_devices([](const Format& format) {
                           return !format.has_byte_scales;
                         })),
                         [](const auto& info) { return info.param.name(); });

TEST_P(QuantizerTest, WhatTrainsIsWhatShips) {
  for (ScaleMode mode : modes())
    for (EncodeMethod initial : {EncodeMethod::kRtn, EncodeMethod::kGgml, EncodeMethod::kSearch})
      for (int64_t seed = 0; seed < 12; ++seed) {
        FakeQuantizer quantizer("w", format(), mode, random_weights(seed), {}, initial);
        EXPECT_TRUE(same_bits(materialized(quantizer), decoded(quantizer)))
            << scale_mode_name(mode) << ", seed " << seed << ", at the start";
        perturb(quantizer);
        EXPECT_TRUE(same_bits(materialized(quantizer), decoded(quantizer)))
            << scale_mode_name(mode) << ", seed " << seed << ", trained";
      }
}

TEST_P(LearningTest, StartsAtTheScalesOfPtq) {
  const torch::Tensor weights = nibble::random_weights(2);
  FakeQuantizer quantizer("w", format(), ScaleMode::kLearned, weights.to(device(), false, true), {},
                          EncodeMethod::kSearch);
  const std::vector<std::byte> blocks =
      encode_tensor(format().type, {weights.const_data_ptr<float>(), kRows * kLength}, kLength, {},
                    EncodeMethod::kSearch);
  torch::Tensor ptq = torch::empty_like(weights);
  decode_tensor(format().type, blocks, {ptq.mutable_data_ptr<float>(), kRows * kLength});
  // Nearest codes for the same scales can only be nearer than PTQ's.
  const double error = (materialized(quantizer) - weights).square().sum().item<double>();
  EXPECT_LE(error, (ptq - weights).square().sum().item<double>());
}

TEST_P(LearningTest, RatioGradientIsInitialTimesScaleGradient) {
  if (format().num_scales == 0) GTEST_SKIP() << "no scales";
  FakeQuantizer quantizer("w", format(), ScaleMode::kLearned, random_weights(5), {},
                          EncodeMethod::kSearch);
  quantizer.scale_ratios().mul_(0.7);                  // so that weights at the ends are clamped
  quantizer.scale_ratios().select(1, 3).fill_(-0.5f);  // which stands for 0
  const torch::Tensor grad_out = torch::randn({kRows, kLength});
  const torch::Tensor initial = quantizer.initial_scales().cpu();
  const torch::Tensor scales = quantizer.scale_ratios().cpu().clamp_min(0) * initial;
  torch::Tensor grad_weights = torch::empty_like(grad_out), grad_scales = torch::empty_like(scales);
  format().fake_quantize_backward(quantizer.weights().cpu().const_data_ptr<float>(),
                                  scales.const_data_ptr<float>(), grad_out.const_data_ptr<float>(),
                                  grad_weights.mutable_data_ptr<float>(),
                                  grad_scales.mutable_data_ptr<float>(),
                                  kRows * kLength / format().block_size, Estimator::kRelative);

  const FakeQuantizer::Gradients got = quantizer.backward(grad_out.clone().to(device()));
  EXPECT_TRUE(same_bits(got.weights, grad_weights));
  EXPECT_TRUE(same_bits(got.scale_ratios, grad_scales * initial));
  const double norm = (got.weights.to(torch::kFloat64).square().sum() +
                       got.scale_ratios.to(torch::kFloat64).square().sum())
                          .item<double>();
  // Float32 sums of 4096 squares.
  EXPECT_NEAR(squared_norm_of_all({got.weights, torch::Tensor(), got.scale_ratios}), norm,
              1e-5 * norm);
  if (!GetParam().cuda) {
    EXPECT_NEAR(got.squared_norm, norm, 1e-5 * norm);
  }
}

/// Neighbouring levels of a grid whose scales are known.
TEST_P(QuantizerTest, LevelDistanceIsThatOfNeighbours) {
  FakeQuantizer quantizer("w", format(), modes()[0], random_weights(8), {}, EncodeMethod::kRtn);
  const double found = quantizer.level_distance();
  if (format().num_scales == 0) {
    EXPECT_EQ(found, 0);
    return;
  }
  // Of each group, the span of its W^ over the number of gaps between its codes' values is at most
  // so far off as the levels' gaps differ (a codebook's by 4); groups of one value say nothing.
  const torch::Tensor groups = materialized(quantizer).view({-1, format().group_size});
  double sum = 0, count = 0;
  for (int64_t i = 0; i < groups.size(0); ++i) {
    const auto levels = std::get<0>(at::_unique2(groups[i], /*sorted=*/true));
    if (levels.numel() < 2) continue;
    const double gap = (levels.slice(0, 1) - levels.slice(0, 0, -1)).min().item<double>();
    sum += gap * gap;
    ++count;
  }
  const double seen = std::sqrt(sum / count);
  EXPECT_GT(found, seen / 4) << seen;
  EXPECT_LT(found, seen * 4) << seen;
}

/// A step of the scales alone changes no code with estimators whose masters follow, and does with
/// others.
TEST_P(LearningTest, MastersFollowScalesOnce) {
  if (format().num_scales == 0) GTEST_SKIP() << "no scales";
  for (const std::string& name : estimator_names()) {
    const Estimator estimator = parse_estimator(name);
    FakeQuantizer quantizer("w", format(), ScaleMode::kLearned, random_weights(5), {},
                            EncodeMethod::kSearch);
    quantizer.set_estimator(estimator);
    materialized(quantizer);
    const torch::Tensor masters = quantizer.weights().clone();
    quantizer.backward(torch::zeros_like(masters));
    quantizer.scale_ratios().mul_(1.07);
    const torch::Tensor after = materialized(quantizer).clone();
    const torch::Tensor moved = quantizer.weights().clone();
    EXPECT_EQ(same_bits(moved, masters), !estimator.follows) << name;
    EXPECT_TRUE(same_bits(materialized(quantizer), after)) << "they follow a step once";
    EXPECT_TRUE(same_bits(quantizer.weights(), moved));
  }
}

TEST_P(LearningTest, WhatEveryEstimatorTrainsIsWhatShips) {
  if (format().num_scales == 0) GTEST_SKIP() << "no scales";
  for (const std::string& name : estimator_names()) {
    FakeQuantizer quantizer("w", format(), ScaleMode::kLearned, random_weights(7), {},
                            EncodeMethod::kSearch);
    quantizer.set_estimator(parse_estimator(name));
    const torch::Tensor start = materialized(quantizer).clone();
    for (int step = 0; step < 3; ++step) {
      const auto gradients = quantizer.backward(torch::randn({kRows, kLength}).to(device()));
      quantizer.weights().sub_(0.1 * gradients.weights);
      const torch::Tensor& slopes = gradients.scale_ratios;
      quantizer.scale_ratios().sub_(0.1 * slopes / slopes.abs().max());
      const torch::Tensor trained = materialized(quantizer);  // masters follow here
      EXPECT_TRUE(same_bits(trained, decoded(quantizer))) << name;
    }
    EXPECT_FALSE(same_bits(materialized(quantizer), start)) << name;
  }
}

TEST_P(LearningTest, StraightThroughWithoutLearnedScales) {
  const torch::Tensor grad_out = torch::randn({kRows, kLength}).to(device());
  FakeQuantizer dynamic("w", format(), ScaleMode::kDynamic, random_weights(1), {},
                        EncodeMethod::kSearch);
  EXPECT_TRUE(same_bits(dynamic.backward(grad_out.clone()).weights, grad_out));
  EXPECT_FALSE(dynamic.backward(grad_out.clone()).scale_ratios.defined());

  FakeQuantizer frozen("w", format(), ScaleMode::kFrozen, random_weights(1), {},
                       EncodeMethod::kSearch);
  FakeQuantizer learned("w", format(), ScaleMode::kLearned, random_weights(1), {},
                        EncodeMethod::kSearch);
  EXPECT_FALSE(frozen.backward(grad_out.clone()).scale_ratios.defined());
  EXPECT_TRUE(same_bits(frozen.backward(grad_out.clone()).weights,
                        learned.backward(grad_out.clone()).weights));
}

TEST_P(QuantizerTest, RestoredStateGivesTheSameWeights) {
  for (ScaleMode mode : modes()) {
    FakeQuantizer trained("w", format(), mode, random_weights(7), {}, EncodeMethod::kSearch);
    perturb(trained);
    FakeQuantizer restored("w", format(), mode, trained.weights().clone(), trained.scale_ratios(),
                           trained.initial_scales());
    EXPECT_TRUE(same_bits(materialized(trained), materialized(restored)));
    EXPECT_EQ(trained.blocks(), restored.blocks());
  }
}

TEST_P(QuantizerTest, SameAsOnTheCpu) {
  for (ScaleMode mode : modes()) {
    FakeQuantizer trained("w", format(), mode, nibble::random_weights(6), {},
                          EncodeMethod::kSearch);
    perturb(trained);
    const auto moved = [&](const torch::Tensor& tensor) {
      return tensor.defined() ? tensor.to(device(), false, /*copy=*/true) : tensor;
    };
    FakeQuantizer on_gpu("w", format(), mode, moved(trained.weights()),
                         moved(trained.scale_ratios()), moved(trained.initial_scales()));
    EXPECT_TRUE(same_bits(materialized(on_gpu), materialized(trained))) << scale_mode_name(mode);
    EXPECT_EQ(on_gpu.blocks(), trained.blocks());
    torch::Tensor w = torch::empty_like(on_gpu.weights());
    on_gpu.materialize(w);
    EXPECT_EQ(content_hash(w), content_hash(materialized(trained)));
    // A step of the scales, which the masters follow.
    for (FakeQuantizer* each : {&trained, &on_gpu}) {
      each->backward(torch::ones_like(each->weights()));
      if (each->scale_ratios().defined()) each->scale_ratios().mul_(0.93);
    }
    EXPECT_TRUE(same_bits(materialized(on_gpu), materialized(trained))) << scale_mode_name(mode);
    EXPECT_TRUE(same_bits(on_gpu.weights().cpu(), trained.weights()));
  }
}

TEST_P(LearningTest, SameForAnyNumberOfThreads) {
  const int threads = num_threads();
  std::vector<torch::Tensor> outs, grads;
  std::vector<double> norms;
  for (int count : {1, 3}) {
    set_num_threads(count);
    FakeQuantizer quantizer("w", format(), ScaleMode::kLearned, random_weights(4), {},
                            EncodeMethod::kSearch);
    outs.push_back(materialized(quantizer));
    torch::manual_seed(9);
    const FakeQuantizer::Gradients gradients =
        quantizer.backward(torch::randn({kRows, kLength}).to(device()));
    grads.push_back(gradients.weights);
    norms.push_back(gradients.squared_norm);
  }
  set_num_threads(threads);
  EXPECT_TRUE(same_bits(outs[0], outs[1]));
  EXPECT_TRUE(same_bits(grads[0], grads[1]));
  EXPECT_EQ(norms[0], norms[1]);
}

TEST_P(LearningTest, RefusesWhatItCannotHold) {
  torch::Tensor weights = random_weights(1);
  weights[3][17] = std::numeric_limits<float>::infinity();
  if (format().num_scales > 0) {
    try {
      FakeQuantizer("blk.0.w", format(), ScaleMode::kLearned, weights, {}, EncodeMethod::kSearch);
      ADD_FAILURE() << "took an infinity";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("blk.0.w"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("row 3"), std::string::npos) << error.what();
    }
    EXPECT_THROW(FakeQuantizer("w", format(), ScaleMode::kLearned, random_weights(1),
                               torch::ones({kRows, 1}), torch::ones({kRows, 1})),
                 Error);
    EXPECT_THROW(FakeQuantizer("w", format(), ScaleMode::kLearned, random_weights(1),
                               torch::Tensor(), torch::Tensor()),
                 Error);
  }
  EXPECT_THROW(
      FakeQuantizer("w", format(), ScaleMode::kLearned, torch::zeros({4}), {}, EncodeMethod::kRtn),
      Error);
  if (format().block_size > 1) {
    EXPECT_THROW(FakeQuantizer("w", format(), ScaleMode::kLearned, torch::zeros({2, 48 + 1}), {},
                               EncodeMethod::kRtn),
                 Error);
  }
}

TEST_P(QuantizerTest, ScalesThatAreBytesAreOnlyDynamic) {
  if (!format().has_byte_scales) GTEST_SKIP() << "its scales train";
  const torch::Tensor grad_out = torch::randn({kRows, kLength}).to(device());
  FakeQuantizer dynamic("w", format(), ScaleMode::kDynamic, random_weights(1), {},
                        EncodeMethod::kSearch);
  EXPECT_TRUE(same_bits(dynamic.backward(grad_out.clone()).weights, grad_out));
  for (ScaleMode mode : {ScaleMode::kLearned, ScaleMode::kFrozen}) {
    try {
      FakeQuantizer("blk.0.w", format(), mode, random_weights(1), {}, EncodeMethod::kSearch);
      ADD_FAILURE() << "took " << scale_mode_name(mode);
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), 2);
      EXPECT_EQ(std::string(error.what()),
                concat("tensor 'blk.0.w': scales of ", format().name, " cannot be ",
                       scale_mode_name(mode),
                       ", as bytes are too coarse for it; set quant.scales to dynamic"));
    }
  }
}

TEST(ContentHash, SeesEveryBit) {
  torch::manual_seed(3);
  torch::Tensor values = torch::randn({70'001});  // more than one piece, odd
  const uint64_t hash = content_hash(values);
  EXPECT_EQ(hash, content_hash(values.clone()));
  auto* data = reinterpret_cast<uint32_t*>(values.mutable_data_ptr<float>());
  for (int64_t i : {0, 1, 65'535, 65'536, 70'000})
    for (int bit : {0, 13, 31}) {
      data[i] ^= 1u << bit;
      EXPECT_NE(hash, content_hash(values)) << "value " << i << ", bit " << bit;
      data[i] ^= 1u << bit;
    }
  // Two signs at once: a sum or a plain xor-multiply would lose them.
  data[1] ^= 1u << 31;
  data[3] ^= 1u << 31;
  EXPECT_NE(hash, content_hash(values));
  EXPECT_NE(content_hash(torch::zeros({4})), content_hash(torch::zeros({5})));
}

TEST(ScaleModes, HaveNames) {
  for (ScaleMode mode : kModes) EXPECT_EQ(parse_scale_mode(scale_mode_name(mode)), mode);
  try {
    parse_scale_mode("learnt");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), 2);
    EXPECT_NE(std::string(error.what()).find("'learned'"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace nibble
