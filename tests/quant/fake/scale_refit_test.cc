#include "quant/fake/scale_refit.h"

#include <gtest/gtest.h>

#include "quant/fake/on_grid.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 20, kWidth = 512;

class ScaleRefitTest : public testing::TestWithParam<const Format*> {
 protected:
  ScaleRefitTest() {
    torch::manual_seed(5);
    weights_ = torch::randn({kRows, kWidth});
    const torch::Tensor inputs = at::mm(torch::randn({900, 64}), torch::randn({64, kWidth})) +
                                 0.3 * torch::randn({900, kWidth});
    hessian_ = at::mm(inputs.t(), inputs);
  }
  const Format& format() const { return *GetParam(); }
  /// The nearest codes for searched scales of weights that are `factor` times as large.
  OnGrid start(double factor) const {
    const torch::Tensor weights = weights_ * factor;
    const torch::Tensor scales = chosen_scales(format(), weights, {});
    return {scales, fake_quantized(format(), weights, scales)};
  }
  torch::Tensor codes(const OnGrid& on_grid) const {
    const auto blocks = encoded(format(), on_grid.rounded, on_grid.scales);
    torch::Tensor codes = torch::empty({kRows, kWidth}, torch::kInt8);
    format().codes_of(blocks.data(), codes.mutable_data_ptr<int8_t>(),
                      codes.numel() / format().block_size);
    return codes;
  }

  torch::Tensor weights_, hessian_;
};

TEST_P(ScaleRefitTest, NoRowGetsWorse) {
  for (const double factor : {1.0, 0.8, 1.3}) {
    const OnGrid before = start(factor), after = refit_scales(format(), weights_, hessian_, before);
    EXPECT_TRUE((row_errors(weights_, after.rounded, hessian_) <=
                 row_errors(weights_, before.rounded, hessian_))
                    .all()
                    .item<bool>())
        << factor;
  }
}

// Codes for weights 1.3 times as large are near the best for these with scales that are smaller by
// as much.
TEST_P(ScaleRefitTest, FindsScalesThatWereTooLarge) {
  if (format().has_byte_scales) GTEST_SKIP() << "bytes are too far apart";
  const OnGrid before = start(1.3), after = refit_scales(format(), weights_, hessian_, before);
  const double right = output_error(weights_, start(1.0).rounded, hessian_);
  const double wrong = output_error(weights_, before.rounded, hessian_);
  EXPECT_GT(wrong, 1.05 * right);
  EXPECT_LT(output_error(weights_, after.rounded, hessian_), right + 0.1 * (wrong - right));
}

TEST_P(ScaleRefitTest, TheCodesStay) {
  const OnGrid before = start(1.1), after = refit_scales(format(), weights_, hessian_, before);
  // A step of 0 leaves nothing to tell codes apart by.
  const auto blocks = encoded(format(), after.rounded, after.scales);
  torch::Tensor steps = torch::empty({kRows, kWidth / format().group_size});
  format().steps_of(blocks.data(), steps.mutable_data_ptr<float>(),
                    kRows * kWidth / format().block_size);
  const torch::Tensor lost = steps.eq(0).repeat_interleave(format().group_size, 1);
  EXPECT_TRUE(codes(before).eq(codes(after)).logical_or(lost).all().item<bool>());
  EXPECT_LT(lost.to(torch::kFloat32).mean().item<double>(), 0.1);
}

TEST_P(ScaleRefitTest, ItsScalesAreWhatBlocksStore) {
  const OnGrid after = refit_scales(format(), weights_, hessian_, start(1.1));
  torch::Tensor snapped = torch::empty_like(after.scales);
  format().snap(after.scales.const_data_ptr<float>(), snapped.mutable_data_ptr<float>(),
                kRows * kWidth / format().block_size);
  EXPECT_TRUE(at::equal(snapped, after.scales));
  EXPECT_TRUE(at::equal(fake_quantized(format(), after.rounded, after.scales), after.rounded));
}

// The least-squares step of a block, w q / q q, where inputs do not correlate.
TEST_P(ScaleRefitTest, WithoutCorrelationItIsTheLeastSquaresStep) {
  if (format().num_scales != 1 || format().has_byte_scales) GTEST_SKIP() << "not one step a block";
  const OnGrid before = start(1.1);
  const OnGrid after = refit_scales(format(), weights_, at::eye(kWidth), before);
  const torch::Tensor q = codes(before).to(torch::kFloat64).view({-1, format().block_size});
  const torch::Tensor w = weights_.to(torch::kFloat64).view_as(q);
  const torch::Tensor wanted = (w * q).sum(1) / (q * q).sum(1);
  // The nearest float16, and half a step of it for float32's sums.
  EXPECT_TRUE(at::allclose(after.scales.flatten().to(torch::kFloat64), wanted, 0x1p-10, 0));
}

// What a K-quant's coordinate sweeps end at cannot be improved by any single integer.
TEST_P(ScaleRefitTest, NoSubScaleCouldBeBetter) {
  const int64_t groups = format().block_size / format().group_size;
  if (format().num_scales <= groups || groups == 1) GTEST_SKIP() << "no sub-scales";
  OnGrid found = start(1.0);
  for (int i = 0; i < 6; ++i) found = refit_scales(format(), weights_, hessian_, found);
  const torch::Tensor kept = codes(found).to(torch::kFloat32);
  const double least = output_error(weights_, found.rounded, hessian_);
  const int64_t first = format().num_scales == 1 + groups ? 1 : 2;
  for (int64_t group = 0; group < groups; group += 3)
    for (const float by : {-1.0f, 1.0f}) {
      torch::Tensor scales = found.scales.clone();
      scales[0][first + group] += by;
      const float d = scales[0][0].item<float>();
      torch::Tensor rounded = found.rounded.clone();
      const int64_t begin = group * format().group_size;
      rounded[0]
          .slice(0, begin, begin + format().group_size)
          .add_(by * d * kept[0].slice(0, begin, begin + format().group_size));
      // float32's sums over 512 columns leave a 1e-6 of the whole.
      EXPECT_GT(output_error(weights_, rounded, hessian_), least * (1 - 1e-6)) << group;
    }
}

std::vector<const Format*> formats_with_scales() {
  std::vector<const Format*> found;
  for (const Format& format : formats())
    if (format.num_scales > 0) found.push_back(&format);
  return found;
}

INSTANTIATE_TEST_SUITE_P(Formats, ScaleRefitTest, testing::ValuesIn(formats_with_scales()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace nibble
