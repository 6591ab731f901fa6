#include "quant/fake/gptq.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 24, kWidth = 512;

class GptqTest : public testing::TestWithParam<const Format*> {
 protected:
  GptqTest() {
    torch::manual_seed(7);
    weights_ = torch::randn({kRows, kWidth});
    // Inputs of few directions, as those of a language model: what one column loses others can make
    // good for.
    const torch::Tensor inputs = at::mm(torch::randn({2000, 64}), torch::randn({64, kWidth})) +
                                 0.3 * torch::randn({2000, kWidth});
    Hessian hessian(kWidth);
    hessian.add(inputs.slice(0, 0, 800));
    hessian.add(inputs.slice(0, 800));
    hessian_ = hessian.sum();
    const auto blocks =
        encode_tensor(format().type, values(weights_), kWidth, {}, EncodeMethod::kSearch);
    const int64_t count = kRows * kWidth / format().block_size;
    scales_ = torch::empty({kRows, count / kRows * format().num_scales});
    format().scales_of(blocks.data(), scales_.mutable_data_ptr<float>(), count);
    plain_ = decoded(blocks);
  }
  const Format& format() const { return *GetParam(); }
  static std::span<const float> values(const torch::Tensor& tensor) {
    return {tensor.const_data_ptr<float>(), static_cast<size_t>(tensor.numel())};
  }
  torch::Tensor decoded(const std::vector<std::byte>& blocks) const {
    torch::Tensor out = torch::empty({kRows, kWidth});
    decode_tensor(format().type, blocks,
                  {out.mutable_data_ptr<float>(), static_cast<size_t>(out.numel())});
    return out;
  }
  /// What encode_with() makes of weights with the scales, which are as blocks store them.
  torch::Tensor shipped(const torch::Tensor& weights, const torch::Tensor& scales) const {
    std::vector<std::byte> blocks(kRows * row_bytes(format().type, kWidth));
    format().encode_with(weights.const_data_ptr<float>(), scales.const_data_ptr<float>(),
                         blocks.data(), kRows * kWidth / format().block_size);
    return decoded(blocks);
  }

  torch::Tensor weights_, hessian_, scales_, plain_;
};

TEST_P(GptqTest, LosesLessOfTheOutputThanRounding) {
  for (const bool by_energy : {false, true}) {
    const GptqResult found = gptq(format(), weights_, hessian_, scales_, {0.01, by_energy});
    EXPECT_LT(output_error(weights_, found.rounded, hessian_),
              0.8 * output_error(weights_, plain_, hessian_));
  }
}

TEST_P(GptqTest, NoRowLosesMoreThanByRounding) {
  // Too little damping for a Hessian of few directions: errors that are passed on grow.
  const torch::Tensor inputs = torch::randn({40, kWidth});
  for (const torch::Tensor& hessian : {hessian_, at::mm(inputs.t(), inputs)})
    for (const bool refit : {false, true}) {
      const GptqResult found = gptq(format(), weights_, hessian, scales_, {1e-5, true, refit});
      EXPECT_TRUE((row_errors(weights_, found.rounded, hessian) <=
                   row_errors(weights_, fake_quantized(format(), weights_, scales_), hessian))
                      .all()
                      .item<bool>());
    }
}

TEST_P(GptqTest, ItsCodesAreThoseOfItsWeights) {
  for (const bool refit : {false, true}) {
    const GptqResult found = gptq(format(), weights_, hessian_, scales_, {0.01, true, refit});
    const torch::Tensor ships = shipped(found.weights, found.scales);
    EXPECT_EQ(std::memcmp(ships.const_data_ptr<float>(), found.rounded.const_data_ptr<float>(),
                          ships.nbytes()),
              0);
  }
}

TEST_P(GptqTest, RefittedScalesLoseLess) {
  const GptqResult before = gptq(format(), weights_, hessian_, scales_, {0.01, true, false});
  const GptqResult after = gptq(format(), weights_, hessian_, scales_);
  EXPECT_TRUE(at::equal(before.scales, scales_));
  const double ratio = output_error(weights_, after.rounded, hessian_) /
                       output_error(weights_, before.rounded, hessian_);
  EXPECT_LE(ratio, 1.0);
  // Powers of two are too far apart for it; the finest grids gain least.
  EXPECT_LT(ratio, format().has_byte_scales ? 1.01 : 0.995);
}

// Inputs that do not correlate leave nothing to make good for.
TEST_P(GptqTest, WithoutCorrelationItRounds) {
  const torch::Tensor diagonal = at::diag(torch::rand({kWidth}) + 0.1);
  const GptqResult found = gptq(format(), weights_, diagonal, scales_, {0.01, true, false});
  EXPECT_TRUE(at::equal(found.weights, weights_));
  EXPECT_TRUE(at::equal(found.rounded, shipped(weights_, scales_)));
}

TEST_P(GptqTest, InputsThatAreAlwaysZeroDoNoHarm) {
  torch::Tensor hessian = hessian_.clone();
  hessian.slice(0, 10, 20).zero_();
  hessian.slice(1, 10, 20).zero_();
  const GptqResult found = gptq(format(), weights_, hessian, scales_, {0.01, true, false});
  EXPECT_TRUE(at::equal(found.weights.slice(1, 10, 20), weights_.slice(1, 10, 20)));
  EXPECT_TRUE(at::isfinite(found.weights).all().item<bool>());
  const GptqResult refitted = gptq(format(), weights_, hessian, scales_);
  EXPECT_TRUE(at::isfinite(refitted.rounded).all().item<bool>());
}

TEST_P(GptqTest, ABadHessianIsRefused) {
  torch::Tensor hessian = hessian_.clone();
  hessian[3][3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(gptq(format(), weights_, hessian, scales_), Error);
  EXPECT_THROW(gptq(format(), weights_, hessian_.slice(0, 1), scales_), Error);
  EXPECT_THROW(gptq(format(), weights_, -hessian_, scales_), Error);
}

std::vector<const Format*> formats_with_scales() {
  std::vector<const Format*> found;
  for (const Format& format : formats())
    if (format.num_scales > 0) found.push_back(&format);
  return found;
}

INSTANTIATE_TEST_SUITE_P(Formats, GptqTest, testing::ValuesIn(formats_with_scales()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace nibble
