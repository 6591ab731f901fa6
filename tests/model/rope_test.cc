#include "model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "base/error.h"

namespace nibble {
namespace {

constexpr int64_t kDimensions = 16, kPairs = kDimensions / 2;

double plain_frequency(int64_t pair) { return std::pow(10000.0, -2.0 * pair / kDimensions); }

RopeOptions plain_options() {
  RopeOptions options;
  options.dimensions = kDimensions;
  return options;
}

TEST(Rope, TurnsPairsByPositionTimesFrequency) {
  Rope rope(plain_options());
  const torch::Tensor positions = torch::tensor({0, 5, 63}, torch::kInt64);
  torch::manual_seed(1);
  const torch::Tensor x = torch::randn({3, 2, kDimensions});
  const torch::Tensor y = rotate(x, rope.rotation(positions, 64));
  ASSERT_EQ(y.sizes(), x.sizes());
  for (int64_t n = 0; n < 3; ++n)
    for (int64_t head = 0; head < 2; ++head)
      for (int64_t pair = 0; pair < kPairs; ++pair) {
        const double angle = positions[n].item<int64_t>() * plain_frequency(pair);
        const double a = x[n][head][2 * pair].item<float>(),
                     b = x[n][head][2 * pair + 1].item<float>();
        // |x| < 4: four roundings of float32 at that size.
        constexpr double kTolerance = 4 * 4 * 6e-8;
        EXPECT_NEAR(y[n][head][2 * pair].item<float>(), a * std::cos(angle) - b * std::sin(angle),
                    kTolerance);
        EXPECT_NEAR(y[n][head][2 * pair + 1].item<float>(),
                    a * std::sin(angle) + b * std::cos(angle), kTolerance);
      }
}

TEST(Rope, LeavesElementsBeyondItsDimensionsAlone) {
  Rope rope(plain_options());
  const torch::Tensor x = torch::randn({2, 1, kDimensions + 4});
  const torch::Tensor y = rotate(x, rope.rotation(torch::tensor({3, 4}, torch::kInt64), 8));
  EXPECT_TRUE(torch::equal(y.narrow(-1, kDimensions, 4), x.narrow(-1, kDimensions, 4)));
  EXPECT_FALSE(torch::equal(y, x));
}

TEST(Rope, BackwardIsTheInverseTurn) {
  Rope rope(plain_options());
  const torch::Tensor rotation = rope.rotation(torch::tensor({7}, torch::kInt64), 8);
  torch::Tensor x = torch::randn({1, 1, kDimensions}).requires_grad_(true);
  const torch::Tensor y = rotate(x, rotation);
  y.backward(y.detach());
  // Turning there and back is the identity; two float32 turns.
  EXPECT_TRUE(torch::allclose(x.grad(), x.detach(), 1e-6, 1e-6));
}

TEST(Rope, GrowsItsTable) {
  Rope rope(plain_options()), large(plain_options());
  const torch::Tensor near = torch::tensor({1}, torch::kInt64),
                      far = torch::tensor({99}, torch::kInt64);
  rope.rotation(near, 2);
  EXPECT_TRUE(torch::equal(at::view_as_real(rope.rotation(far, 100)),
                           at::view_as_real(large.rotation(far, 200))));
}

TEST(Rope, LinearScalingDividesEveryAngle) {
  RopeOptions options = plain_options();
  options.factor = 4;
  for (int64_t pair = 0; pair < kPairs; ++pair)
    EXPECT_DOUBLE_EQ(rope_frequency(options, pair), plain_frequency(pair) / 4);
  EXPECT_DOUBLE_EQ(rope_magnitude(options), 1.0);
}

TEST(Rope, DivisorsDivideEachPairsAngle) {
  RopeOptions options = plain_options();
  options.divisors = {1, 1, 1, 2, 4, 8, 8, 8};
  for (int64_t pair = 0; pair < kPairs; ++pair)
    EXPECT_DOUBLE_EQ(rope_frequency(options, pair), plain_frequency(pair) / options.divisors[pair]);
}

// arXiv:2309.00071, section 3.2: r = L / wavelength rotations in the original context L;
// interpolated below 1 rotation, kept above 32, linear between the pairs where these are reached
// (rounded outwards).
TEST(Rope, YarnKeepsHighFrequenciesAndDividesLowOnes) {
  RopeOptions options = plain_options();
  options.yarn = true;
  options.factor = 8;
  options.original_context = 2048;
  const auto pair_of = [&](double rotations) {
    return kDimensions / 2 * std::log(2048 / (2 * std::numbers::pi * rotations)) /
           std::log(10000.0);
  };
  const double low = std::floor(pair_of(32)), high = std::ceil(pair_of(1));
  ASSERT_EQ(low, 2);
  ASSERT_EQ(high, 6);
  for (int64_t pair = 0; pair < kPairs; ++pair) {
    const double ramp = pair <= low ? 0 : pair >= high ? 1 : (pair - low) / (high - low);
    const double wanted = plain_frequency(pair) * ((1 - ramp) + ramp / 8);
    EXPECT_NEAR(rope_frequency(options, pair) / wanted, 1, 1e-12) << pair;
  }
  EXPECT_DOUBLE_EQ(rope_frequency(options, 0), 1.0);
  EXPECT_DOUBLE_EQ(rope_magnitude(options), 1 + 0.1 * std::log(8.0));
  options.attention_factor = 0.5;
  EXPECT_DOUBLE_EQ(rope_magnitude(options), 0.5 * (1 + 0.1 * std::log(8.0)));
}

TEST(RopeMetadata, DefaultsAndKeys) {
  GgufMetadata metadata;
  RopeOptions options = read_rope_options(metadata, "llama", 64);
  EXPECT_EQ(options.dimensions, 64);
  EXPECT_EQ(options.base, 10000.0);
  EXPECT_EQ(options.factor, 1.0);
  EXPECT_FALSE(options.yarn);

  metadata.set("llama.rope.dimension_count", uint32_t{32});
  metadata.set("llama.rope.freq_base", 5e5f);
  metadata.set("llama.rope.scale_linear", 2.0f);
  EXPECT_EQ(read_rope_options(metadata, "llama", 64).factor, 2.0);
  metadata.set("llama.rope.scaling.factor", 4.0f);
  metadata.set("llama.rope.scaling.type", std::string("yarn"));
  metadata.set("llama.rope.scaling.original_context_length", uint32_t{4096});
  options = read_rope_options(metadata, "llama", 64);
  EXPECT_EQ(options.dimensions, 32);
  EXPECT_EQ(options.base, 5e5);
  EXPECT_EQ(options.factor, 4.0);
  EXPECT_TRUE(options.yarn);
  EXPECT_EQ(options.original_context, 4096);
  metadata.set("llama.rope.scaling.type", std::string("none"));
  EXPECT_EQ(read_rope_options(metadata, "llama", 64).factor, 1.0);
}

TEST(RopeMetadata, RefusesWhatItCannotDo) {
  GgufMetadata metadata;
  metadata.set("llama.rope.scaling.type", std::string("dynamic"));
  EXPECT_THROW(read_rope_options(metadata, "llama", 64), Error);
  metadata.set("llama.rope.scaling.type", std::string("yarn"));
  EXPECT_THROW(read_rope_options(metadata, "llama", 64), Error) << "no original context";
  metadata.set("llama.rope.scaling.type", std::string("linear"));
  EXPECT_NO_THROW(read_rope_options(metadata, "llama", 64));
  EXPECT_THROW(read_rope_options(metadata, "llama", 63), Error) << "odd";
}

}  // namespace
}  // namespace nibble
