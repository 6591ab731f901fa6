// Negative controls: codecs broken in one way each must not pass the checks that the real ones
// pass.
#include <gtest/gtest.h>

#include "format_checks.h"

namespace nibble {
namespace {

const Format* sound = nullptr;  // what the broken functions below call: pointers capture nothing

class ControlTest : public testing::TestWithParam<size_t> {
 protected:
  void SetUp() override {
    sound = &formats()[GetParam()];
    broken = *sound;
    weights = gaussian_row(1, 0.02f);
    for (float& w : weights) w += 0.01f;  // a mean, so that a lost offset shows
    scales = trained_scales(*sound, weights, 0.01f, 1);
    ASSERT_EQ(check_parity(*sound, weights, scales), "");
    ASSERT_EQ(check_nearest(*sound, weights, scales, 2), "");
    ASSERT_EQ(check_search(*sound, weights, {}), "");
  }
  Format broken;
  std::vector<float> weights, scales;
};

INSTANTIATE_TEST_SUITE_P(All, ControlTest, testing::ValuesIn(formats_where(has_trained_scales)),
                         [](const auto& info) { return std::string(formats()[info.param].name); });

using OffsetControlTest = ControlTest;
INSTANTIATE_TEST_SUITE_P(All, OffsetControlTest, testing::ValuesIn(formats_where(has_offset)),
                         [](const auto& info) { return std::string(formats()[info.param].name); });

TEST_P(ControlTest, ForwardThatSkipsRounding) {
  broken.fake_quantize = [](const float* weights, const float*, float* out, int64_t num_blocks) {
    std::copy(weights, weights + num_blocks * sound->block_size, out);
  };
  EXPECT_NE(check_parity(broken, weights, scales), "");
}

TEST_P(ControlTest, ForwardThatSkipsSnapping) {
  // The scale is off by a quarter of a float16 unit: the least that training could leave out.
  broken.snap = [](const float* scales, float* snapped, int64_t num_blocks) {
    for (int64_t i = 0; i < num_blocks * sound->num_scales; ++i)
      snapped[i] = scales[i] * (1.0f + 0x1p-10f);
  };
  EXPECT_NE(check_parity(broken, weights, scales), "");
}

TEST_P(ControlTest, CodesThatAreTruncated) {
  broken.encode_with = [](const float* weights, const float* snapped, std::byte* blocks,
                          int64_t num_blocks) {
    std::vector<float> lowered(weights, weights + num_blocks * sound->block_size);
    const std::vector<float> all(snapped, snapped + num_blocks * sound->num_scales);
    for (size_t i = 0; i < lowered.size(); ++i) lowered[i] -= 0.5f * spacing_at(*sound, all, i);
    sound->encode_with(lowered.data(), snapped, blocks, num_blocks);
  };
  EXPECT_NE(check_nearest(broken, weights, scales, 2), "");
  EXPECT_NE(check_parity(broken, weights, scales), "");
}

TEST_P(ControlTest, ReadingThatIsNotTheOthers) {
  const std::vector<std::byte> blocks = encode(*sound, weights, {}, EncodeMethod::kRtn);
  ASSERT_EQ(check_same_reading(broken, *sound, blocks), "");
  broken.codes_of = [](const std::byte* from, int8_t* codes, int64_t num_blocks) {
    sound->codes_of(from, codes, num_blocks);
    codes[1] = static_cast<int8_t>(codes[1] ^ 1);
  };
  EXPECT_NE(check_same_reading(broken, *sound, blocks), "");
  broken.codes_of = sound->codes_of;
  broken.steps_of = [](const std::byte* from, float* steps, int64_t num_blocks) {
    sound->steps_of(from, steps, num_blocks);
    steps[0] *= 1.0f + 0x1p-23f;
  };
  EXPECT_NE(check_same_reading(broken, *sound, blocks), "");
}

TEST_P(OffsetControlTest, DecodeThatDropsMins) {
  broken.decode = [](const std::byte* blocks, float* out, int64_t num_blocks) {
    std::vector<float> scales(num_blocks * sound->num_scales);
    sound->scales_of(blocks, scales.data(), num_blocks);
    sound->decode(blocks, out, num_blocks);
    for (int64_t i = 0; i < num_blocks * sound->block_size; ++i) {
      out[i] -= scales[i / sound->block_size * sound->num_scales + 1];
    }
  };
  EXPECT_NE(check_parity(broken, weights, scales), "");
  EXPECT_NE(check_nearest(broken, weights, scales, 2), "");
}

TEST_P(ControlTest, DecodeThatSwapsNibbles) {
  broken.decode = [](const std::byte* blocks, float* out, int64_t num_blocks) {
    std::vector<std::byte> swapped(blocks, blocks + num_blocks * sound->block_bytes);
    for (int64_t block = 0; block < num_blocks; ++block) {
      std::byte& last = swapped[(block + 1) * sound->block_bytes - 1];
      last = last << 4 | last >> 4;
    }
    sound->decode(swapped.data(), out, num_blocks);
  };
  EXPECT_NE(check_parity(broken, weights, scales), "");
}

TEST_P(ControlTest, SearchThatIsRtnWithAWorseStep) {
  broken.encode = [](const float* weights, const float* importance, std::byte* blocks,
                     int64_t length, EncodeMethod method) {
    sound->encode(weights, importance, blocks, length, method);
    if (method != EncodeMethod::kSearch) return;
    const int64_t num_blocks = length / sound->block_size;
    std::vector<float> scales(num_blocks * sound->num_scales);
    sound->scales_of(blocks, scales.data(), num_blocks);
    for (int64_t i = 0; i < num_blocks; ++i) scales[i * sound->num_scales] *= 3.0f;
    sound->snap(scales.data(), scales.data(), num_blocks);
    sound->encode_with(weights, scales.data(), blocks, num_blocks);
  };
  EXPECT_NE(check_search(broken, weights, {}), "");
}

TEST_P(ControlTest, BlocksWhoseScalesMove) {
  broken.scales_of = [](const std::byte* blocks, float* scales, int64_t num_blocks) {
    sound->scales_of(blocks, scales, num_blocks);
    for (int64_t i = 0; i < num_blocks * sound->num_scales; ++i) scales[i] *= 1.25f;
  };
  EXPECT_NE(check_survival(broken, encode(*sound, weights, {}, EncodeMethod::kRtn)), "");
}

}  // namespace
}  // namespace nibble
