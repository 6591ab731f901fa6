// The formats that are only decoded: what the registry says of them, their decoding on every
// instruction set and device, and their codebooks. That the weights are the right ones is tested
// against ggml and gguf-py (tests/interop/test_formats.py).
#include <gtest/gtest.h>

#include <algorithm>

#include "cuda_formats.h"
#include "format_checks.h"
#include "quant/format/iq_grids.h"
#include "quant/format/kernel_bodies.h"
#include "quant/format/rows.h"
#include "quant/format/targets.h"

namespace nibble {
namespace {

std::span<const Format> decode_only() { return decoders().subspan(formats().size()); }

class DecodeOnlyTest : public testing::TestWithParam<size_t> {
 protected:
  const Format& format() const { return decode_only()[GetParam()]; }
};

INSTANTIATE_TEST_SUITE_P(All, DecodeOnlyTest, testing::Range(size_t{0}, decode_only().size()),
                         [](const auto& info) {
                           return std::string(decode_only()[info.param].name);
                         });

std::string message_of(const auto& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST_P(DecodeOnlyTest, AgreesWithTheTableOfTypes) {
  const GgmlTypeInfo& info = ggml_type_info(format().type);
  EXPECT_EQ(format().name, info.name);
  EXPECT_EQ(format().block_size, info.block_size);
  EXPECT_EQ(format().block_bytes, info.block_bytes);
}

TEST_P(DecodeOnlyTest, IsADecoderAndNoFormat) {
  EXPECT_EQ(find_decoder(format().type), &format());
  EXPECT_EQ(&require_decoder(format().type), &format());
  EXPECT_EQ(find_format(format().type), nullptr);
  EXPECT_EQ(find_format(format().name), nullptr);
}

TEST_P(DecodeOnlyTest, EncodingNamesTheNearestTypeThatCanBeHad) {
  ASSERT_NE(find_format(format().nearest), nullptr);
  const std::string wanted =
      concat("nibble decodes ", format().name, " but does not encode it; ",
             type_name(format().nearest), " is the nearest type that it encodes");
  EXPECT_EQ(encode_refusal(format().name), wanted);
  EXPECT_EQ(message_of([&] { require_format(format().type); }), wanted);
  const std::vector<float> weights(256, 0.5f);
  EXPECT_EQ(
      message_of([&] { encode_tensor(format().type, weights, 256, {}, EncodeMethod::kSearch); }),
      wanted);
}

TEST_P(DecodeOnlyTest, InstructionSetsAgreeOnAnyBytesAtAnyAddress) {
  const std::vector<std::byte> blocks = random_blocks(format(), 200);
  std::vector<std::byte> shifted(blocks.size() + 1);
  std::copy(blocks.begin(), blocks.end(), shifted.begin() + 1);
  const size_t index = formats().size() + GetParam();
  const Format& generic = targets()[0].formats[index];
  const std::vector<float> expected = decode(generic, blocks);
  for (const Target& target : targets()) {
    if (!target.supported) continue;
    std::vector<float> out(expected.size());
    target.formats[index].decode(shifted.data() + 1, out.data(), 200);
    EXPECT_EQ(compare_bits(out, expected, std::string(target.name).c_str()), "");
    EXPECT_EQ(check_same_reading(target.formats[index], generic, blocks), "") << target.name;
  }
}

TEST(DecodeOnly, AGpuGivesTheSameWeights) {
  NIBBLE_SKIP_WITHOUT_DEVICE(true);
  for (const Format& format : decode_only()) {
    const std::vector<std::byte> blocks = random_blocks(format, 200);
    std::vector<float> expected = decode(format, blocks), out(expected.size());
    decode_tensor(format.type, blocks, out, Device{true, 0});
    for (size_t i = 0; i < out.size(); ++i) {
      if (std::isnan(out[i]) && std::isnan(expected[i])) out[i] = expected[i];  // of either's bits
    }
    EXPECT_EQ(compare_bits(out, expected, format.name.data()), "");
  }
}

/// The CUDA kernel's lanes, run on the CPU: each writes its own group and nothing else.
template <class F, int kWeights, class Out>
void check_lanes() {
  const Format& format = require_decoder(F::kType);
  const std::vector<std::byte> blocks = random_blocks(format, 3);
  const std::vector<float> expected = decode(format, blocks);
  std::vector<Out> wanted(expected.size());
  for (size_t i = 0; i < wanted.size(); ++i) store_as(expected[i], &wanted[i]);
  std::vector<Out> out(expected.size());
  const auto bytes = [](const std::vector<Out>& values) {
    return std::as_bytes(std::span(values));
  };
  for (size_t group = 0; group < expected.size() / F::kGroupSize; ++group) {
    std::vector<Out> lane(expected.size());
    decode_group_lane<F, kWeights>(static_cast<int64_t>(group), blocks.data(), lane.data());
    const size_t begin = group * F::kGroupSize, end = begin + F::kGroupSize;
    for (size_t i = begin; i < end; ++i) std::swap(out[i], lane[i]);
    EXPECT_TRUE(std::ranges::all_of(bytes(lane), [](std::byte b) { return b == std::byte{0}; }))
        << "lane " << group << " writes beyond its group";
  }
  EXPECT_TRUE(std::ranges::equal(bytes(out), bytes(wanted)));
}

#define NIBBLE_FORMAT(F)
#define NIBBLE_DECODE_ONLY(F)       \
  TEST(DecodeOnlyKernelBodies, F) { \
    check_lanes<F, 4, float>();     \
    check_lanes<F, 1, float>();     \
    check_lanes<F, 8, Float16>();   \
    check_lanes<F, 1, Bfloat16>();  \
  }
#include "quant/format/formats.def"
#undef NIBBLE_DECODE_ONLY
#undef NIBBLE_FORMAT

/// A point's place among all points: its levels' indices as digits, the first the lowest.
template <class Grid>
int64_t number_of(GridPoint<Grid> point) {
  int64_t number = 0;
  for (int i = Grid::kDigits - 1; i >= 0; --i) {
    const auto level = std::ranges::find(Grid::kLevels, static_cast<int8_t>(point >> 8 * i));
    EXPECT_NE(level, std::end(Grid::kLevels));
    number = number * std::ssize(Grid::kLevels) + (level - std::begin(Grid::kLevels));
  }
  return number;
}

template <class Grid>
class GridTest : public testing::Test {};
using Grids = testing::Types<Iq1Grid, Iq2XxsGrid, Iq2XsGrid, Iq2SGrid, Iq3XxsGrid, Iq3SGrid>;
TYPED_TEST_SUITE(GridTest, Grids);

TYPED_TEST(GridTest, PointsRise) {
  for (int code = 1; code < TypeParam::kSize; ++code)
    EXPECT_LT(number_of<TypeParam>(grid_point<TypeParam>(code - 1)),
              number_of<TypeParam>(grid_point<TypeParam>(code)));
}

TEST(Iq, TheEighthSignMakesTheNumberOfNegativesEven) {
  for (uint32_t seven = 0; seven < 128; ++seven) {
    const uint32_t signs = even_signs(seven);
    EXPECT_EQ(signs & 127u, seven);
    EXPECT_LT(signs, 256u);
    EXPECT_EQ(__builtin_popcount(signs) % 2, 0);
  }
}

}  // namespace
}  // namespace nibble
