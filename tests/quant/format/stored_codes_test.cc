// set_scales and scale_gradients: training where codes stay as they are. Laws as functions, so that
// negative controls can hand in a broken format.
#include <gtest/gtest.h>

#include <algorithm>

#include "format_checks.h"
#include "quant/format/targets.h"

namespace nibble {
namespace {

const Format* sound = nullptr;  // what the broken functions below call: pointers capture nothing

class StoredCodesTest : public testing::TestWithParam<size_t> {
 protected:
  void SetUp() override { sound = &formats()[GetParam()]; }
};

INSTANTIATE_TEST_SUITE_P(All, StoredCodesTest, testing::ValuesIn(formats_where(has_trained_scales)),
                         [](const auto& info) { return std::string(formats()[info.param].name); });

std::vector<int8_t> codes_of(const Format& format, const std::vector<std::byte>& blocks) {
  const int64_t num_blocks = static_cast<int64_t>(blocks.size()) / format.block_bytes;
  std::vector<int8_t> codes(num_blocks * format.block_size);
  format.codes_of(blocks.data(), codes.data(), num_blocks);
  return codes;
}

std::vector<std::byte> with_scales(const Format& format, std::vector<std::byte> blocks,
                                   const std::vector<float>& scales) {
  format.set_scales(scales.data(), blocks.data(),
                    static_cast<int64_t>(blocks.size()) / format.block_bytes);
  return blocks;
}

std::vector<float> scale_gradients(const Format& format, const std::vector<std::byte>& blocks,
                                   const std::vector<float>& scales,
                                   const std::vector<float>& grad_out) {
  std::vector<float> gradients(scales.size());
  format.scale_gradients(blocks.data(), scales.data(), grad_out.data(), gradients.data(),
                         static_cast<int64_t>(blocks.size()) / format.block_bytes);
  return gradients;
}

/// Codes stay, and the scales are those that snap() gives.
Verdict check_set_scales(const Format& format, uint32_t seed) {
  for (const Row& row : make_rows(seed)) {
    const std::vector<std::byte> blocks = encode(format, row.weights, {}, EncodeMethod::kGgml);
    std::vector<float> scales = trained_scales(format, row.weights, 0.5f, seed);
    for (float& scale : scales) scale *= 2.5f;  // far enough for other codes to be nearer
    const std::vector<std::byte> changed = with_scales(format, blocks, scales);
    if (codes_of(format, changed) != codes_of(format, blocks))
      return concat(row.name, ": codes changed");
    // A scale of -0 may become 0.
    if (scales_of(format, changed) != snap(format, scales))
      return concat(row.name, ": scales are not the snapped ones");
    if (with_scales(format, changed, scales_of(format, blocks)) != blocks)
      return concat(row.name, ": the old scales do not give the old bytes");
  }
  return "";
}

/// Against finite differences of what the blocks decode to. Each is exact: values are linear in
/// every single scale, and scales are powers of two that move to a neighbouring float16, or to the
/// next integer.
Verdict check_finite_differences(const Format& format, uint32_t seed) {
  const std::vector<float> grad_out = gaussian_row(seed, 1.0f);
  const std::vector<float> weights = gaussian_row(seed + 1, 4.0f);
  std::vector<float> scales(blocks_in(format, weights) * format.num_scales, 0.25f);
  const size_t first_sub_scale = has_sub_mins(format) ? 2 : 1;
  const auto is_sub_scale = [&](size_t i) {
    return has_sub_scales(format) && i % format.num_scales >= first_sub_scale;
  };
  for (size_t i = 0; i < scales.size(); ++i)
    if (is_sub_scale(i)) scales[i] = 8.0f;
  const std::vector<std::byte> blocks = encode_with(format, weights, scales);
  const std::vector<float> found = scale_gradients(format, blocks, scales, grad_out);
  const std::vector<float> before = decode(format, blocks);
  for (int which = 0; which < format.num_scales; ++which) {
    std::vector<float> moved = scales;
    const float change = is_sub_scale(which) ? 1.0f : 0x1p-9f;
    for (size_t i = which; i < moved.size(); i += format.num_scales) moved[i] += change;
    const std::vector<float> after = decode(format, with_scales(format, blocks, moved));
    for (int64_t block = 0; block < blocks_in(format, weights); ++block) {
      double slope = 0.0, magnitude = 0.0;
      for (int64_t i = block * format.block_size; i < (block + 1) * format.block_size; ++i) {
        const double term =
            static_cast<double>(grad_out[i]) * (static_cast<double>(after[i]) - before[i]) / change;
        slope += term;
        magnitude += std::fabs(term);
      }
      // Only the sum of float terms rounds, by at most 24 folds and adds of 2^-24 each.
      const float gradient = found[block * format.num_scales + which];
      if (!(std::fabs(gradient - slope) <= magnitude * 0x1p-20))
        return concat("block ", block, ", scale ", which, ": gradient ", gradient, ", slope ",
                      slope);
    }
  }
  return "";
}

TEST_P(StoredCodesTest, SettingScalesKeepsCodes) {
  for (uint32_t seed = 0; seed < 5; ++seed) EXPECT_EQ(check_set_scales(*sound, seed), "");
}

TEST_P(StoredCodesTest, GradientsAreFiniteDifferences) {
  for (uint32_t seed = 0; seed < 20; ++seed) EXPECT_EQ(check_finite_differences(*sound, seed), "");
}

TEST_P(StoredCodesTest, GradientsDoNotLookAtTheBlocksOwnScales) {
  const std::vector<float> weights = gaussian_row(3, 0.02f), grad_out = gaussian_row(4, 1.0f);
  const std::vector<float> scales = trained_scales(*sound, weights, 0.3f, 5);
  const std::vector<std::byte> blocks = encode(*sound, weights, {}, EncodeMethod::kSearch);
  EXPECT_EQ(scale_gradients(*sound, blocks, scales, grad_out),
            scale_gradients(*sound, with_scales(*sound, blocks, scales), scales, grad_out));
}

TEST_P(StoredCodesTest, InstructionSetsAgreeBitForBit) {
  for (const Target& target : targets()) {
    if (!target.supported) continue;
    const Format &wide = target.formats[GetParam()], &generic = targets()[0].formats[GetParam()];
    for (const Row& row : make_rows(90)) {
      const std::vector<std::byte> blocks = encode(*sound, row.weights, {}, EncodeMethod::kRtn);
      const std::vector<float> scales = trained_scales(*sound, row.weights, 0.5f, 8);
      const std::vector<float> grad_out = gaussian_row(91, 1.0f);
      EXPECT_EQ(with_scales(wide, blocks, scales), with_scales(generic, blocks, scales))
          << row.name;
      EXPECT_EQ(compare_bits(scale_gradients(wide, blocks, scales, grad_out),
                             scale_gradients(generic, blocks, scales, grad_out), "dL/dscales"),
                "")
          << target.name << ", " << row.name;
    }
  }
}

// Negative controls.

TEST_P(StoredCodesTest, NoticesCodesThatAreChosenAnew) {
  Format broken = *sound;
  broken.set_scales = [](const float* scales, std::byte* blocks, int64_t num_blocks) {
    std::vector<float> weights(num_blocks * sound->block_size);
    sound->decode(blocks, weights.data(), num_blocks);
    std::vector<float> snapped(num_blocks * sound->num_scales);
    sound->snap(scales, snapped.data(), num_blocks);
    sound->encode_with(weights.data(), snapped.data(), blocks, num_blocks);
  };
  EXPECT_NE(check_set_scales(broken, 1), "");
}

TEST_P(StoredCodesTest, NoticesScalesThatAreNotSnapped) {
  Format broken = *sound;
  broken.set_scales = [](const float*, std::byte*, int64_t) {};
  EXPECT_NE(check_set_scales(broken, 1), "");
}

TEST_P(StoredCodesTest, NoticesTheGradientsOfMasters) {
  Format broken = *sound;
  // The LSQ gradient of masters that lie on the grid: q - w / s, which is 0 in range.
  broken.scale_gradients = [](const std::byte* blocks, const float* scales, const float* grad_out,
                              float* grad_scales, int64_t num_blocks) {
    std::vector<float> weights(num_blocks * sound->block_size), grads(weights.size());
    sound->decode(blocks, weights.data(), num_blocks);
    sound->fake_quantize_backward(weights.data(), scales, grad_out, grads.data(), grad_scales,
                                  num_blocks, Estimator::kStretched);
  };
  EXPECT_NE(check_finite_differences(broken, 1), "");
}

TEST_P(StoredCodesTest, NoticesGradientsOfAShiftedBlock) {
  Format broken = *sound;
  broken.scale_gradients = [](const std::byte* blocks, const float* scales, const float* grad_out,
                              float* grad_scales, int64_t num_blocks) {
    std::vector<float> shifted(grad_out, grad_out + num_blocks * sound->block_size);
    std::rotate(shifted.begin(), shifted.begin() + 1, shifted.end());
    sound->scale_gradients(blocks, scales, shifted.data(), grad_scales, num_blocks);
  };
  EXPECT_NE(check_finite_differences(broken, 1), "");
}

}  // namespace
}  // namespace nibble
