#include "quant/format/statistics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/threads.h"
#include "format_checks.h"

namespace nibble {
namespace {

/// A tensor in memory.
struct Owned {
  std::vector<std::byte> bytes;
  GgufTensor tensor;

  Owned(GgmlType type, int64_t row_length, std::vector<std::byte> data) : bytes(std::move(data)) {
    const int64_t row = row_bytes(type, row_length);
    tensor.name = "w";
    tensor.type = type;
    tensor.shape = {row_length, static_cast<int64_t>(bytes.size()) / row};
    tensor.data = bytes;
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
};

Owned float_tensor(int64_t row_length, const std::vector<float>& weights) {
  const auto bytes = std::as_bytes(std::span(weights));
  return {GgmlType::kF32, row_length, {bytes.begin(), bytes.end()}};
}

TEST(Statistics, MomentsAreThoseOfTheFiniteWeights) {
  const Owned owned = float_tensor(4, {1, -2, 0, 5, NAN, -0.0f, INFINITY, 2});
  const TensorStatistics found = statistics_of(owned.tensor);
  EXPECT_EQ(found.num_weights, 8);
  EXPECT_EQ(found.num_not_finite, 2);
  EXPECT_EQ(found.num_zero, 2);
  EXPECT_EQ(found.mean(), 1.0);  // of 1 -2 0 5 0 2
  EXPECT_DOUBLE_EQ(found.standard_deviation(), std::sqrt(34.0 / 6 - 1));
  EXPECT_EQ(found.min, -2.0f);
  EXPECT_EQ(found.max, 5.0f);
  EXPECT_EQ(std::accumulate(found.codes.begin(), found.codes.end(), int64_t{0}), 0);
  EXPECT_EQ(std::accumulate(found.steps.begin(), found.steps.end(), int64_t{0}), 0);
}

TEST(Statistics, NoFiniteWeightsIsNoTrouble) {
  const Owned owned = float_tensor(2, {NAN, INFINITY});
  const TensorStatistics found = statistics_of(owned.tensor);
  EXPECT_EQ(found.num_not_finite, 2);
  EXPECT_EQ(found.mean(), 0.0);
  EXPECT_EQ(found.standard_deviation(), 0.0);
}

TEST(Statistics, StepBinsAreQuartersOfOctaves) {
  EXPECT_EQ(step_bin_start(step_bin(1.0f)), 1.0f);
  EXPECT_EQ(step_bin_start(step_bin(1.24f)), 1.0f);
  EXPECT_EQ(step_bin_start(step_bin(-1.25f)), 1.25f);
  EXPECT_EQ(step_bin_start(step_bin(1.99f)), 1.75f);
  EXPECT_EQ(step_bin_start(step_bin(0.0f)), 0.0f);
  EXPECT_EQ(step_bin_start(step_bin(3.4e38f)), 0x1.cp127f);
  EXPECT_LT(step_bin(3.4e38f), kFirstInfiniteStepBin);
  EXPECT_GE(step_bin(INFINITY), kFirstInfiniteStepBin);
  EXPECT_GE(step_bin(-NAN), kFirstInfiniteStepBin);
  EXPECT_LT(step_bin(-NAN), kNumStepBins);
}

TEST(Statistics, CodesAndStepsAreCounted) {
  std::vector<float> weights(64, 0.25f);  // of two blocks, d = 0.125 and 0.5
  weights[0] = -1.0f;
  weights[32] = -4.0f;
  const Format& q4_0 = require_format(GgmlType::kQ4_0);
  const Owned owned(GgmlType::kQ4_0, 64, encode(q4_0, weights, {}, EncodeMethod::kGgml));
  const TensorStatistics found = statistics_of(owned.tensor);
  EXPECT_EQ(found.codes[128 - 8], 2);
  EXPECT_EQ(found.codes[128 + 2], 31);
  // 0.25 is half a step of 0.5: ggml rounds it up.
  EXPECT_EQ(found.codes[128 + 1], 31);
  EXPECT_EQ(found.steps[step_bin(0.125f)], 1);
  EXPECT_EQ(found.steps[step_bin(0.5f)], 1);
}

/// What codes_of and steps_of say of blocks is what they decode to.
TEST(Statistics, CodesTimesStepsAreTheWeights) {
  for (const Format& format : decoders()) {
    if (!format.codes_of) continue;
    SCOPED_TRACE(format.name);
    const std::vector<std::byte> blocks = random_blocks(format, 50);
    const std::vector<float> weights = decode(format, blocks);
    std::vector<int8_t> codes(weights.size());
    std::vector<float> steps(weights.size() / format.group_size);
    format.codes_of(blocks.data(), codes.data(), 50);
    format.steps_of(blocks.data(), steps.data(), 50);
    const bool encodes = format.encode != nullptr;
    const std::vector<float> scales = encodes ? scales_of(format, blocks) : std::vector<float>();
    for (size_t i = 0; i < weights.size(); ++i) {
      if (!std::isfinite(weights[i])) continue;
      const float step = steps[i / format.group_size], code = codes[i];
      const float offset = encodes ? offset_at(format, scales, i) : 0.0f;
      // Codebooks of IQ1 are shifted by an eighth of a step, up or down.
      const bool shifted =
          weights[i] == step * (code + 0.125f) || weights[i] == step * (code - 0.125f);
      EXPECT_TRUE(weights[i] == code * step + offset || (!encodes && shifted))
          << i << ": " << weights[i] << " is not " << code << " * " << step << " + " << offset;
    }
  }
}

TEST(Statistics, SumsDoNotDependOnThreads) {
  const Format& q8_0 = require_format(GgmlType::kQ8_0);
  std::vector<float> weights;
  for (uint32_t seed = 0; seed < 2500; ++seed) {  // more than two pieces
    const std::vector<float> row = gaussian_row(seed % 7, 0.02f);
    weights.insert(weights.end(), row.begin(), row.end());
  }
  const Owned owned(GgmlType::kQ8_0, 1024, encode(q8_0, weights, {}, EncodeMethod::kRtn));
  const int threads = num_threads();
  std::vector<TensorStatistics> found;
  for (const int count : {1, 3}) {
    set_num_threads(count);
    found.push_back(statistics_of(owned.tensor));
  }
  set_num_threads(threads);
  EXPECT_EQ(found[0].num_weights, 2500 * 1024);
  EXPECT_EQ(found[0].sum, found[1].sum);
  EXPECT_EQ(found[0].sum_of_squares, found[1].sum_of_squares);
  EXPECT_EQ(found[0].codes, found[1].codes);
  EXPECT_EQ(found[0].steps, found[1].steps);
}

TEST(CompareRows, IsRelativeToTheReference) {
  const Owned a = float_tensor(2, {3, 4, 6, 8, 1, NAN, 0, 0}),
              b = float_tensor(2, {3, 3, 6, 8, 2, 1, 0, 0.5f});
  const std::vector<int64_t> rows = {0, 1, 2, 3};
  const std::vector<Difference> found = compare_rows(a.tensor, b.tensor, rows);
  ASSERT_EQ(found.size(), 4u);
  EXPECT_DOUBLE_EQ(found[0].relative_error(), 0.2);
  EXPECT_DOUBLE_EQ(found[0].sqnr_db(), 10 * std::log10(25.0));
  EXPECT_EQ(found[0].max_abs, 1.0);
  EXPECT_TRUE(found[1].none());
  EXPECT_EQ(found[1].relative_error(), 0.0);
  EXPECT_EQ(found[1].sqnr_db(), INFINITY);
  EXPECT_EQ(found[2].num_not_finite, 1);
  EXPECT_DOUBLE_EQ(found[2].relative_error(), 1.0);
  EXPECT_EQ(found[3].relative_error(), INFINITY);
  Difference total;
  for (const Difference& row : found) total.add(row);
  EXPECT_EQ(total.num_weights, 8);
  EXPECT_DOUBLE_EQ(total.signal, 25 + 100 + 1);
  EXPECT_DOUBLE_EQ(total.noise, 1 + 1 + 0.25);
  EXPECT_EQ(total.max_abs, 1.0);
}

TEST(CompareRows, TypesMayDifferAndRowsMayBeLong) {
  std::vector<float> weights;  // one row of more than a slab
  for (uint32_t seed = 0; seed < 5; ++seed) {
    const std::vector<float> part = gaussian_row(seed, 0.02f);
    weights.insert(weights.end(), part.begin(), part.end());
  }
  const auto length = static_cast<int64_t>(weights.size());
  const Format& q4_k = require_format(GgmlType::kQ4_K);
  const auto blocks = encode(q4_k, weights, {}, EncodeMethod::kRtn);
  const std::vector<float> decoded = decode(q4_k, blocks);
  const Owned a = float_tensor(length, weights), b(GgmlType::kQ4_K, length, blocks);
  double signal = 0, noise = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    signal += std::pow(weights[i], 2.0);
    noise += std::pow(static_cast<double>(decoded[i]) - weights[i], 2.0);
  }
  const std::vector<int64_t> rows = {0};
  const Difference found = compare_rows(a.tensor, b.tensor, rows)[0];
  EXPECT_EQ(found.num_weights, length);
  EXPECT_DOUBLE_EQ(found.signal, signal);
  EXPECT_DOUBLE_EQ(found.noise, noise);
}

TEST(CompareRows, RefusesWhatHasNoCodec) {
  const Owned a(GgmlType::kI32, 4, std::vector<std::byte>(16));
  const std::vector<int64_t> rows = {0};
  EXPECT_THROW(compare_rows(a.tensor, a.tensor, rows), Error);
}

TEST(CountEqualCodes, SeesCodesNotScales) {
  std::vector<float> weights = gaussian_row(7, 0.02f);
  const Format& format = require_format(GgmlType::kQ3_K);
  std::vector<std::byte> blocks = encode(format, weights, {}, EncodeMethod::kGgml);
  const Owned a(GgmlType::kQ3_K, kRowLength, blocks);
  std::vector<float> scales = scales_of(format, blocks);
  for (float& scale : scales) scale *= 1.25f;
  format.set_scales(scales.data(), blocks.data(), kRowLength / format.block_size);
  const Owned rescaled(GgmlType::kQ3_K, kRowLength, blocks);
  blocks[40] ^= std::byte{0x05};  // two codes' low bits
  const Owned changed(GgmlType::kQ3_K, kRowLength, blocks);
  const std::vector<int64_t> rows = {0};
  EXPECT_EQ(count_equal_codes(a.tensor, rescaled.tensor, rows), kRowLength);
  EXPECT_EQ(count_equal_codes(a.tensor, changed.tensor, rows), kRowLength - 2);
  const Owned other(GgmlType::kQ4_K, kRowLength,
                    encode(require_format(GgmlType::kQ4_K), weights, {}, EncodeMethod::kGgml));
  EXPECT_EQ(count_equal_codes(a.tensor, other.tensor, rows), std::nullopt);
  const Owned floats = float_tensor(2, {1, 2});
  EXPECT_EQ(count_equal_codes(floats.tensor, floats.tensor, rows), std::nullopt);
}

TEST(SampleRows, TakesAllThatFit) {
  EXPECT_EQ(sample_rows(3, 10, 30), (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(sample_rows(1, 1000, 30), (std::vector<int64_t>{0}));
}

TEST(SampleRows, TakesOneOfEachStretchOtherwise) {
  const std::vector<int64_t> rows = sample_rows(4096, 4096, 64 * 4096);
  ASSERT_EQ(rows.size(), 64u);
  std::vector<int64_t> places;
  for (int64_t i = 0; i < 64; ++i) {
    EXPECT_EQ(rows[i] / 64, i);
    places.push_back(rows[i] % 64);
  }
  std::sort(places.begin(), places.end());
  const auto different = std::unique(places.begin(), places.end()) - places.begin();
  EXPECT_GT(different, 16) << "rows of attention heads: one place of 64 must not stand for all";
  EXPECT_EQ(sample_rows(4096, 4096, 64 * 4096), rows);
  EXPECT_EQ(sample_rows(1000, 64, 1).size(), 1u);
}

}  // namespace
}  // namespace nibble
