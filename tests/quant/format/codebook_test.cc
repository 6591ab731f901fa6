// Levels that are not evenly spaced, and scales of 8 bits, against their definitions in double.
#include "quant/format/codebook.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "quant/format/iq4.h"
#include "quant/format/mxfp4.h"
#include "quant/format/nvfp4.h"
#include "quant/format/q1_0.h"

namespace nibble {
namespace {

/// The nearest level in double; of two the higher one, or with ties_to_zero the smaller.
template <class Levels>
double nearest_level(double x, bool ties_to_zero) {
  double best = Levels::at(0);
  for (int i = 1; i < Levels::kCount; ++i) {
    const double level = Levels::at(i), middle = (level + best) / 2;
    const bool tie = !ties_to_zero || std::fabs(level) < std::fabs(best);
    if (x > middle || (x == middle && tie)) best = level;
  }
  return best;
}

template <class Levels>
void check_levels(bool ties_to_zero) {
  // Sixteenths hit every level and every middle, and the floats beside them are tried too.
  for (float x = -150.0f; x <= 150.0f; x += 0.0625f) {
    for (const float near : {x, std::nextafter(x, -1e9f), std::nextafter(x, 1e9f)}) {
      ASSERT_EQ(Levels::nearest(near), nearest_level<Levels>(near, ties_to_zero)) << near;
    }
  }
  EXPECT_EQ(Levels::nearest(1e38f), Levels::at(Levels::kCount - 1));
  EXPECT_EQ(Levels::nearest(-INFINITY), Levels::at(0));
  EXPECT_TRUE(std::isnan(Levels::nearest(std::nanf(""))));
  EXPECT_FALSE(Levels::in_range(std::nanf(""), 0.5f));
  for (int i = 0; i < Levels::kCount; ++i) EXPECT_EQ(Levels::index_of(Levels::at(i)), i);
}

TEST(Codebook, RoundsToTheNearestLevel) {
  check_levels<Iq4Levels>(/*ties_to_zero=*/false);
  check_levels<Fp4Levels>(/*ties_to_zero=*/true);
  check_levels<Q1_0::Levels>(/*ties_to_zero=*/false);
}

TEST(Codebook, IsInRangeUpToHalfOfTheLastGap) {
  for (const float x : {-138.5f, 125.0f}) EXPECT_TRUE(Iq4Levels::in_range(x, 0.5f)) << x;
  for (const float x : {-138.53f, 125.03f}) EXPECT_FALSE(Iq4Levels::in_range(x, 0.5f)) << x;
  for (const float x : {-14.0f, 14.0f}) EXPECT_TRUE(Fp4Levels::in_range(x, 0.5f)) << x;
  for (const float x : {-14.01f, 14.01f}) EXPECT_FALSE(Fp4Levels::in_range(x, 0.5f)) << x;
}

TEST(Codebook, TablesHoldTheLevels) {
  for (int i = 0; i < Iq4Levels::kCount; ++i) EXPECT_EQ(iq4_level(i), Iq4Levels::at(i));
  for (int i = 0; i < Fp4Levels::kCount; ++i) {
    const int level = Fp4Levels::at(i);
    EXPECT_EQ(fp4_level(fp4_code(level)), level);
  }
  EXPECT_EQ(fp4_code(0), 0);
  EXPECT_EQ(fp4_level(8), 0);
}

// ggml takes floorf(log2f(x)); this is the same libm.
TEST(Mxfp4, TheExponentIsThatOfLog2f) {
  for (int exponent = -126; exponent <= 127; ++exponent) {
    const float power = std::ldexp(1.0f, exponent);
    for (int units = 0; units < 200; ++units) {
      const float above = float_of(bits_of(power) + units);
      ASSERT_EQ(MXFP4::floor_of_log2(above), std::floor(std::log2(above))) << above;
      if (exponent == -126) continue;  // below it are no normal numbers
      const float below = float_of(bits_of(power) - units);
      ASSERT_EQ(MXFP4::floor_of_log2(below), std::floor(std::log2(below))) << below;
    }
  }
}

TEST(Mxfp4, ScalesAreTheNearestPowersOfTwo) {
  EXPECT_EQ(MXFP4::nearest_scale(1.49f), 1.0f);
  EXPECT_EQ(MXFP4::nearest_scale(-1.5f), 2.0f);
  EXPECT_EQ(MXFP4::nearest_scale(0.0f), 0x1p-126f);
  EXPECT_EQ(MXFP4::nearest_scale(3e38f), 0x1p126f);
  EXPECT_EQ(MXFP4::range_scale(14.0f), 1.0f);
  EXPECT_EQ(MXFP4::range_scale(14.01f), 2.0f);
  for (int byte = 0; byte < 255; ++byte)
    EXPECT_EQ(MXFP4::byte_of_scale(MXFP4::scale_of_byte(byte)), byte);
}

TEST(Nvfp4, ScalesAreTheNearestOfTheirBytes) {
  std::vector<float> scales;
  for (int byte = 0; byte < 0x7f; ++byte) {
    scales.push_back(NVFP4::scale_of_byte(byte));
    EXPECT_EQ(NVFP4::byte_of_scale(scales.back()), byte);
    EXPECT_EQ(NVFP4::nearest_scale(scales.back()), scales.back());
  }
  for (size_t i = 2; i < scales.size(); ++i) {
    const float middle = (scales[i - 1] + scales[i]) / 2;
    EXPECT_EQ(NVFP4::nearest_scale(std::nextafter(middle, 0.0f)), scales[i - 1]);
    EXPECT_EQ(NVFP4::nearest_scale(std::nextafter(middle, 1e9f)), scales[i]);
    EXPECT_EQ(NVFP4::nearest_scale(middle), scales[i % 2 ? i - 1 : i]);  // ties to the even byte
  }
  EXPECT_EQ(NVFP4::nearest_scale(1e-30f), 0x1p-10f);
  EXPECT_EQ(NVFP4::nearest_scale(1e30f), 224.0f);
}

TEST(Nvfp4, TheRangeReachesTheLargestWeight) {
  for (float amax = 1e-4f; amax < 2688.0f; amax *= 1.01f)
    EXPECT_LE(amax, 14.0f * NVFP4::range_scale(amax)) << amax;
}

}  // namespace
}  // namespace nibble
