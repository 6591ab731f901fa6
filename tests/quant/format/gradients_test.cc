// fake_quantize_backward against the estimators' formulas in double, computed from what the public
// functions give, and against finite differences where the forward is smooth: where all codes are
// clamped. And follow(): masters that keep their places between levels.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <tuple>

#include "cuda_formats.h"
#include "format_checks.h"
#include "quant/format/targets.h"

namespace nibble {
namespace {

class GradientTest : public testing::TestWithParam<DeviceFormat> {
 protected:
  void SetUp() override { NIBBLE_SKIP_WITHOUT_DEVICE(GetParam().cuda); }
  const Format& format() const { return GetParam().format(); }
};

INSTANTIATE_TEST_SUITE_P(All, GradientTest, testing::ValuesIn(all_on_both_devices()),
                         [](const auto& info) { return info.param.name(); });

using ScaledGradientTest = GradientTest;
INSTANTIATE_TEST_SUITE_P(All, ScaledGradientTest,
                         testing::ValuesIn(on_both_devices(has_trained_scales)),
                         [](const auto& info) { return info.param.name(); });

using FloatGradientTest = GradientTest;
INSTANTIATE_TEST_SUITE_P(All, FloatGradientTest,
                         testing::ValuesIn(on_both_devices(std::not_fn(has_scales))),
                         [](const auto& info) { return info.param.name(); });

struct Gradients {
  std::vector<float> weights, scales;
};

Gradients backward(const Format& format, const std::vector<float>& weights,
                   const std::vector<float>& scales, const std::vector<float>& grad_out,
                   Estimator estimator = Estimator::kRelative) {
  Gradients result = {std::vector<float>(weights.size()), std::vector<float>(scales.size())};
  format.fake_quantize_backward(weights.data(), scales.data(), grad_out.data(),
                                result.weights.data(), result.scales.data(),
                                blocks_in(format, weights), estimator);
  return result;
}

/// x to the nearest level; in range up to `margin` of the last distance between levels beyond them.
struct Rounded {
  double q;
  bool in_range, on_edge;
};
Rounded round_to_level(const std::vector<float>& levels, double x, double margin) {
  const double q = *std::min_element(levels.begin(), levels.end(), [&](double a, double b) {
    return std::fabs(a - x) < std::fabs(b - x);
  });
  const size_t last = levels.size() - 1;
  const double least = levels[0] - (levels[1] - levels[0]) * margin;
  const double most = levels[last] + (levels[last] - levels[last - 1]) * margin;
  return {q, x >= least && x <= most, std::min(std::fabs(x - least), std::fabs(x - most)) < 1e-5};
}

/// An estimator as its paper has it.
struct Paper {
  std::string name;
  double margin;
  bool rounds, trains_offset, bends_sign;
};
const Paper kPapers[] = {{"relative", 0.5, false, true, false},
                         {"ste", std::numeric_limits<double>::infinity(), false, true, false},
                         {"lsq", 0.0, true, false, false},
                         {"lsq+", 0.0, true, true, false},
                         {"stretched", 0.5, true, true, false},
                         {"sign", 0.5, false, true, true}};

struct Expected {
  std::vector<double> weights, scales, scale_magnitudes;
};

/// Takes the gradients off weights that lie on the edge of their range.
Expected formula(const Format& format, const std::vector<float>& weights,
                 const std::vector<float>& scales, std::vector<float>& grad_out,
                 const Paper& paper) {
  const std::vector<float>& levels = levels_of(format);
  const std::vector<float> snapped = snap(format, scales);
  Expected expected = {std::vector<double>(weights.size()), std::vector<double>(scales.size()),
                       std::vector<double>(scales.size())};
  for (size_t i = 0; i < weights.size(); ++i) {
    const size_t first = i / format.block_size * format.num_scales;
    const double step = step_at(format, snapped, i), offset = offset_at(format, snapped, i);
    const double x = step == 0.0 ? 0.0 : (weights[i] - offset) / step;
    const auto [q, in_range, on_edge] = round_to_level(levels, x, paper.margin);
    // The rounding of x decides: whoever compares must not.
    if (on_edge) grad_out[i] = 0.0f;
    const double g = grad_out[i];
    const bool bends = paper.bends_sign && levels.size() == 2;
    expected.weights[i] = bends ? g * std::max(0.0, 2.0 - 2.0 * std::fabs(x)) : in_range ? g : 0.0;
    const double by_step = g * (in_range && paper.rounds ? q - x : q);
    const double by_offset = !paper.trains_offset || (in_range && paper.rounds) ? 0.0 : g;
    const double step_size = std::fabs(g) * (std::fabs(q) + std::fabs(x));
    const auto add = [&](size_t scale, double term, double size) {
      expected.scales[first + scale] += term;
      expected.scale_magnitudes[first + scale] += std::fabs(size);
    };
    // The step is d or d t, the offset m or -dmin u: the chain rule's other factors.
    const auto [t, u] = sub_scales_of(format, i);
    const double d = snapped[first], factor = t ? snapped[first + t] : 1.0;
    add(0, factor * by_step, factor * step_size);
    if (t) add(t, d * by_step, d * step_size);
    if (has_offset(format)) add(1, by_offset, g);
    if (u) {
      add(1, -snapped[first + u] * by_offset, snapped[first + u] * g);
      add(u, -snapped[first + 1] * by_offset, snapped[first + 1] * g);
    }
  }
  return expected;
}

class EstimatorTest : public testing::TestWithParam<std::tuple<DeviceFormat, Paper>> {
 protected:
  void SetUp() override { NIBBLE_SKIP_WITHOUT_DEVICE(std::get<0>(GetParam()).cuda); }
  const Format& format() const { return std::get<0>(GetParam()).format(); }
  const Paper& paper() const { return std::get<1>(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(All, EstimatorTest,
                         testing::Combine(testing::ValuesIn(on_both_devices(has_trained_scales)),
                                          testing::ValuesIn(kPapers)),
                         [](const auto& info) {
                           const std::string& name = std::get<1>(info.param).name;
                           return std::get<0>(info.param).name() + "_" +
                                  (name == "lsq+" ? "lsq_plus" : name);
                         });

TEST_P(EstimatorTest, FollowsItsFormula) {
  // A weight on the edge between two codes may fall either way by the rounding of x: Gaussian
  // weights do not lie there.
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const std::vector<float> weights = gaussian_row(seed, 0.02f);
    std::vector<float> grad_out = gaussian_row(seed + 50, 1.0f);
    // Steps at half of the range's, so that many codes are clamped.
    std::vector<float> scales = trained_scales(format(), weights, 0.1f, seed);
    for (size_t i = 0; i < scales.size(); i += format().num_scales) scales[i] *= 0.5f;
    const Expected expected = formula(format(), weights, scales, grad_out, paper());
    const Gradients found =
        backward(format(), weights, scales, grad_out, parse_estimator(paper().name));
    int clamped = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      // Bent, it is rounded about four times; otherwise it is g or 0.
      const double error = paper().bends_sign ? 0x1p-21 * std::fabs(2.0 * grad_out[i]) : 0.0;
      ASSERT_NEAR(found.weights[i], expected.weights[i], error) << i << ", seed " << seed;
      clamped += found.weights[i] == 0.0f;
    }
    if (paper().margin > 1.0)
      EXPECT_EQ(clamped, 0);
    else
      EXPECT_GT(clamped, 10);
    for (size_t i = 0; i < scales.size(); ++i) {
      // Each term is rounded about four times, sums of 256 terms by at most 24 folds and adds:
      // 2^-24 each, of what is far from all of the magnitude.
      EXPECT_NEAR(found.scales[i], expected.scales[i], expected.scale_magnitudes[i] * 0x1p-20);
    }
  }
}

TEST_P(ScaledGradientTest, AreFiniteDifferencesWhereAllCodesAreClamped) {
  const std::vector<float> grad_out = gaussian_row(61, 1.0f);
  std::vector<float> weights = gaussian_row(60, 1.0f);
  for (float& w : weights) w = w < 0.0f ? -1000.0f : 1000.0f;
  // Powers of two, and steps between them and a neighbouring float16, which snap() keeps; a
  // sub-scale moves by 1.
  std::vector<float> scales(blocks_in(format(), weights) * format().num_scales, 0.25f);
  const size_t first_sub_scale = has_sub_mins(format()) ? 2 : 1;
  const auto is_sub_scale = [&](size_t i) {
    return has_sub_scales(format()) && i % format().num_scales >= first_sub_scale;
  };
  for (size_t i = 0; i < scales.size(); ++i)
    if (is_sub_scale(i)) scales[i] = 8.0f;
  const Gradients found = backward(format(), weights, scales, grad_out);
  const std::vector<float> before = fake_quantize(format(), weights, scales);
  for (int which = 0; which < format().num_scales; ++which) {
    std::vector<float> moved = scales;
    const float change = is_sub_scale(which) ? 1.0f : 0x1p-9f;
    for (size_t i = which; i < moved.size(); i += format().num_scales) moved[i] += change;
    const std::vector<float> after = fake_quantize(format(), weights, moved);
    for (int64_t block = 0; block < blocks_in(format(), weights); ++block) {
      double slope = 0.0, magnitude = 0.0;
      for (int64_t i = block * format().block_size; i < (block + 1) * format().block_size; ++i) {
        const double term =
            static_cast<double>(grad_out[i]) * (static_cast<double>(after[i]) - before[i]) / change;
        slope += term;
        magnitude += std::fabs(term);
      }
      // The values are exact here; only the sum of float terms rounds.
      EXPECT_NEAR(found.scales[block * format().num_scales + which], slope, magnitude * 0x1p-20);
    }
  }
}

/// Where a weight lies in its group's grid: (w - offset) / step.
double place_of(const Format& format, const std::vector<float>& snapped, float w, size_t i) {
  return (w - offset_at(format, snapped, i)) / step_at(format, snapped, i);
}

TEST_P(ScaledGradientTest, MastersKeepTheirPlacesWhereScalesMove) {
  const std::vector<float> weights = gaussian_row(30, 0.02f);
  const std::vector<float> from = trained_scales(format(), weights, 0.0f, 1);
  const std::vector<float> to = trained_scales(format(), weights, 0.3f, 2);
  const std::vector<float> before = snap(format(), from), after = snap(format(), to);
  std::vector<float> moved = weights;
  format().follow(moved.data(), from.data(), to.data(), blocks_in(format(), weights));
  int64_t changed = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const float step = step_at(format(), before, i), new_step = step_at(format(), after, i);
    if (step == 0 || new_step == 0) {  // no places there: only the offset moves the weight
      EXPECT_NEAR(moved[i] - weights[i],
                  offset_at(format(), after, i) - offset_at(format(), before, i), 1e-6);
      continue;
    }
    changed += step != new_step;
    // Four roundings of float32, of numbers that are at most some levels (and offsets) in size.
    EXPECT_NEAR(place_of(format(), after, moved[i], i), place_of(format(), before, weights[i], i),
                1e-4)
        << i;
  }
  EXPECT_GT(changed, static_cast<int64_t>(weights.size()) / 2);
  // And back: scales that did not move leave every bit.
  std::vector<float> same = moved;
  format().follow(same.data(), to.data(), to.data(), blocks_in(format(), weights));
  EXPECT_EQ(same, moved);
}

TEST_P(GradientTest, MayOverwriteTheirInput) {
  const std::vector<float> weights = gaussian_row(70, 0.02f), grad_out = gaussian_row(71, 1.0f);
  const auto scales = trained_scales(format(), weights, 0.5f, 7);
  const Gradients apart = backward(format(), weights, scales, grad_out);
  std::vector<float> in_place = grad_out, scale_gradients(scales.size());
  format().fake_quantize_backward(weights.data(), scales.data(), in_place.data(), in_place.data(),
                                  scale_gradients.data(), blocks_in(format(), weights),
                                  Estimator::kRelative);
  EXPECT_EQ(in_place, apart.weights);
  EXPECT_EQ(scale_gradients, apart.scales);
}

TEST_P(GradientTest, InstructionSetsAndDevicesAgreeBitForBit) {
  std::vector<const Format*> all;
  for (const Target& target : targets()) {
    if (target.supported && !GetParam().cuda) all.push_back(&target.formats[GetParam().index]);
  }
  if (GetParam().cuda) all.push_back(&format());
  for (const Format* wide : all) {
    for (const Row& row : make_rows(80)) {
      const auto scales = trained_scales(format(), row.weights, 0.5f, 8);
      const std::vector<float> grad_out = gaussian_row(81, 1.0f);
      const Gradients found = backward(*wide, row.weights, scales, grad_out);
      const Gradients generic =
          backward(targets()[0].formats[GetParam().index], row.weights, scales, grad_out);
      EXPECT_EQ(compare_bits(found.weights, generic.weights, "dL/dW"), "") << row.name;
      EXPECT_EQ(compare_bits(found.scales, generic.scales, "dL/dscales"), "") << row.name;
    }
  }
}

TEST_P(FloatGradientTest, PassThroughWithoutScales) {
  const std::vector<float> weights = gaussian_row(90, 1.0f), grad_out = gaussian_row(91, 1.0f);
  EXPECT_EQ(backward(format(), weights, {}, grad_out).weights, grad_out);
}

}  // namespace
}  // namespace nibble
