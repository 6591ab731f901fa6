#include "quant/fake/awq.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "base/error.h"
#include "quant/fake/on_grid.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 32, kWidth = 256;

class AwqTest : public testing::Test {
 protected:
  AwqTest() {
    torch::manual_seed(3);
    weights_ = torch::randn({kRows, kWidth});
  }
  AwqMatrix matrix(std::string_view type) const { return {find_format(type), weights_}; }
  static torch::Tensor hessian(const torch::Tensor& sizes) {
    const torch::Tensor inputs = torch::randn({1000, kWidth}) * sizes;
    return at::mm(inputs.t(), inputs);
  }

  torch::Tensor weights_;
  const torch::Tensor each_ = at::arange(kWidth);
};

TEST_F(AwqTest, ProtectsChannelsOfLargeInputs) {
  torch::Tensor sizes = torch::ones({kWidth});
  sizes.slice(0, 0, kWidth, 50).fill_(30);  // few, as in language models
  for (const char* type : {"Q4_0", "Q2_K", "Q4_K"}) {
    const AwqFactors found = awq_factors({matrix(type)}, hessian(sizes), each_, kWidth);
    EXPECT_GT(found.exponent, 0) << type;
    // K-quants weigh columns themselves: their groups of 16 and 32 have scales of their own.
    EXPECT_LT(found.error, (type == std::string("Q4_0") ? 0.8 : 1.0) * found.error_without) << type;
    EXPECT_GT(found.of_channels[0].item<float>(), found.of_channels[1].item<float>()) << type;
  }
}

TEST_F(AwqTest, ItsErrorIsThatOfTheFoldedAndRoundedMatrix) {
  const torch::Tensor sizes = torch::rand({kWidth}).mul(3).exp(), h = hessian(sizes);
  const Format& format = *find_format("Q4_1");
  const AwqFactors found = awq_factors({{&format, weights_}}, h, each_, kWidth);
  const torch::Tensor folded = weights_ * found.of_channels;
  const torch::Tensor scales =
      chosen_scales(format, folded, (h.diagonal() / found.of_channels.square()).contiguous());
  const torch::Tensor back = fake_quantized(format, folded, scales) / found.of_channels;
  EXPECT_EQ(found.error, output_error(weights_, back, h));
  EXPECT_LE(found.error, found.error_without);
}

TEST_F(AwqTest, ChannelsOfOneRowShareItsFactor) {
  const torch::Tensor rows = at::arange(kWidth / 2).repeat({2});
  const torch::Tensor sizes = torch::rand({kWidth}).mul(3).exp();
  const AwqFactors found = awq_factors({matrix("Q4_0")}, hessian(sizes), rows, kWidth / 2);
  EXPECT_EQ(found.of_rows.numel(), kWidth / 2);
  EXPECT_TRUE(at::equal(found.of_channels, found.of_rows.index_select(0, rows)));
}

TEST_F(AwqTest, NothingIsMovedWhereNothingIsRounded) {
  const torch::Tensor sizes = torch::rand({kWidth}).mul(3).exp();
  const AwqFactors found = awq_factors({matrix("F16")}, hessian(sizes), each_, kWidth);
  EXPECT_EQ(found.exponent, 0);
  EXPECT_TRUE(at::equal(found.of_channels, torch::ones({kWidth})));
}

TEST_F(AwqTest, SleepingChannelsAndInputsDoNoHarm) {
  torch::Tensor sizes = torch::rand({kWidth}).mul(3).exp();
  sizes.slice(0, 7, 20).zero_();
  const AwqFactors some = awq_factors({matrix("Q4_0")}, hessian(sizes), each_, kWidth);
  EXPECT_TRUE(at::isfinite(some.of_channels).all().item<bool>());
  EXPECT_LE((some.of_channels.max() / some.of_channels.min()).item<float>(), 1e5);
  const AwqFactors none =
      awq_factors({matrix("Q4_0")}, torch::zeros({kWidth, kWidth}), each_, kWidth);
  EXPECT_TRUE(at::equal(none.of_rows, torch::ones({kWidth})));
  torch::Tensor bad = hessian(sizes);
  bad[3][3] = std::numeric_limits<float>::infinity();
  EXPECT_THROW(awq_factors({matrix("Q4_0")}, bad, each_, kWidth), Error);
}

}  // namespace
}  // namespace nibble
