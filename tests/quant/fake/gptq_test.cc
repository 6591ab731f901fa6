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
  /// What encode_with() makes of weights with the scales.
  torch::Tensor encoded(const torch::Tensor& weights) const {
    std::vector<std::byte> blocks(kRows * row_bytes(format().type, kWidth));
    format().encode_with(weights.const_data_ptr<float>(), scales_.const_data_ptr<float>(),
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

TEST_P(GptqTest, ItsCodesAreThoseOfItsWeights) {
  const GptqResult found = gptq(format(), weights_, hessian_, scales_);
  const torch::Tensor shipped = encoded(found.weights);
  EXPECT_EQ(std::memcmp(shipped.const_data_ptr<float>(), found.rounded.const_data_ptr<float>(),
                        shipped.nbytes()),
            0);
}

// Inputs that do not correlate leave nothing to make good for.
TEST_P(GptqTest, WithoutCorrelationItRounds) {
  const torch::Tensor diagonal = at::diag(torch::rand({kWidth}) + 0.1);
  const GptqResult found = gptq(format(), weights_, diagonal, scales_);
  EXPECT_TRUE(at::equal(found.weights, weights_));
  EXPECT_TRUE(at::equal(found.rounded, encoded(weights_)));
}

TEST_P(GptqTest, InputsThatAreAlwaysZeroDoNoHarm) {
  torch::Tensor hessian = hessian_.clone();
  hessian.slice(0, 10, 20).zero_();
  hessian.slice(1, 10, 20).zero_();
  const GptqResult found = gptq(format(), weights_, hessian, scales_);
  EXPECT_TRUE(at::equal(found.weights.slice(1, 10, 20), weights_.slice(1, 10, 20)));
  EXPECT_TRUE(at::isfinite(found.weights).all().item<bool>());
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
