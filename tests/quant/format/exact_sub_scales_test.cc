// Sources whose blocks lie on a grid of a format with sub-scales already: search finds the grid
// again, on the CPU and on a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

#include "base/float16.h"
#include "cuda_formats.h"
#include "format_checks.h"

namespace nibble {
namespace {

constexpr int64_t kNumBlocks = 400;

/// Blocks of random codes and scales: d of all sizes, of both signs without mins; dmin that reaches
/// from a quarter of the largest group's range to all of it; t's from `least` of their largest up,
/// u's from 0.
std::vector<std::byte> planted_blocks(const Format& format, float least, uint32_t seed) {
  std::mt19937 random(seed);
  const auto between = [&](float lo, float hi) {
    return std::uniform_real_distribution<float>(lo, hi)(random);
  };
  const bool mins = has_sub_mins(format);
  const std::vector<float>& levels = levels_of(format);
  const int first = mins ? 2 : 1, groups = (format.num_scales - first) / first;
  std::vector<float> scales;
  for (int64_t block = 0; block < kNumBlocks; ++block) {
    const float d = std::exp2(between(-14.0f, -6.0f)) * (!mins && block % 2 ? -1.0f : 1.0f);
    std::vector<float> largest(format.num_scales, 1e9f);
    const float t_max = snap(format, largest)[first];
    scales.push_back(d);
    if (mins) scales.push_back(d * levels.back() * between(0.25f, 1.0f));
    for (int j = 0; j < groups; ++j)
      scales.push_back(between(least * t_max, t_max) * (!mins && j % 3 == 0 ? -1.0f : 1.0f));
    for (int j = 0; mins && j < groups; ++j) scales.push_back(between(0.0f, t_max));
  }
  const std::vector<float> snapped = snap(format, scales);
  std::vector<float> weights(kNumBlocks * format.block_size);
  for (size_t i = 0; i < weights.size(); ++i) {
    const float level = levels[random() % levels.size()];
    weights[i] = level * step_at(format, snapped, i) + offset_at(format, snapped, i);
  }
  return encode_with(format, weights, snapped);
}

std::vector<float> column_weights(uint32_t seed, size_t count) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> weights(count);
  for (float& x : weights) x = std::exp(normal(random));
  return weights;
}

class ExactSubScalesTest : public testing::TestWithParam<DeviceFormat> {
 protected:
  void SetUp() override { NIBBLE_SKIP_WITHOUT_DEVICE(GetParam().cuda); }
  const Format& format() const { return GetParam().format(); }
};

INSTANTIATE_TEST_SUITE_P(All, ExactSubScalesTest,
                         testing::ValuesIn(on_both_devices(has_sub_scales)),
                         [](const auto& info) { return info.param.name(); });

TEST_P(ExactSubScalesTest, EveryBlockOfTheFormatIsFoundAgain) {
  const std::vector<float> weights = decode(format(), planted_blocks(format(), 0.0f, 1));
  for (const bool weighted : {false, true}) {
    const auto importance = weighted ? column_weights(2, weights.size()) : std::vector<float>();
    const auto found =
        decode(format(), encode(format(), weights, importance, EncodeMethod::kSearch));
    int64_t missed = 0;
    for (int64_t block = 0; block < kNumBlocks; ++block) {
      const auto begin = block * format().block_size;
      // 0 and -0 are one weight.
      missed += !std::equal(&found[begin], &found[begin] + format().block_size, &weights[begin]);
    }
    EXPECT_EQ(missed, 0) << (weighted ? "weighted" : "unweighted");
  }
}

/// t's as large as real blocks have them: of a step of 1 in 63 beside a far offset a bfloat16
/// leaves nothing. Found: the same level, by whatever code, as t and q may change signs, and a code
/// be one more where u makes up for it.
TEST_P(ExactSubScalesTest, LevelsAreFoundAgainAfterRoundingToBfloat16) {
  const std::vector<std::byte> planted = planted_blocks(format(), 0.5f, 3);
  const std::vector<float> wanted = decode(format(), planted),
                           scales = scales_of(format(), planted);
  std::vector<float> weights = wanted;
  for (float& x : weights) x = bfloat16_to_float(float_to_bfloat16(x));
  const auto found = decode(format(), encode(format(), weights, {}, EncodeMethod::kSearch));
  int64_t others = 0;
  for (size_t i = 0; i < wanted.size(); ++i)
    others += std::fabs(found[i] - wanted[i]) > 0.25f * std::fabs(step_at(format(), scales, i));
  // llama-quantize's encoders give 1 to 40 in a hundred other levels.
  EXPECT_LE(static_cast<double>(others), 0.001 * static_cast<double>(wanted.size()));
}

/// Squared error of search over that of llama-quantize's choice, for Gaussian weights that were in
/// another format before.
double error_ratio(GgmlType source, GgmlType type) {
  const Format &from = require_format(source), &to = require_format(type);
  const auto weights = decode(from, encode(from, gaussian_row(4, 0.02f), {}, EncodeMethod::kGgml));
  const auto error_of = [&](EncodeMethod method) {
    return row_error(decode(to, encode(to, weights, {}, method)), weights, {});
  };
  return error_of(EncodeMethod::kSearch) / error_of(EncodeMethod::kGgml);
}

TEST(ExactSubScales, GroupsOnGridsWithoutCommonScalesLoseLittle) {
  // Each group keeps its codes; only its step and offset are rounded. Measured: 0.05, and 0.02 or
  // less; without looking for the groups' grids 0.99, 0.96, 0.99 and 0.91.
  EXPECT_LT(error_ratio(GgmlType::kQ4_1, GgmlType::kQ5_K), 0.15);
  EXPECT_LT(error_ratio(GgmlType::kQ4_0, GgmlType::kQ5_K), 0.1);
  EXPECT_LT(error_ratio(GgmlType::kQ4_0, GgmlType::kQ4_K), 0.1);
  EXPECT_LT(error_ratio(GgmlType::kQ4_0, GgmlType::kQ6_K), 0.1);
}

}  // namespace
}  // namespace nibble
