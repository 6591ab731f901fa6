// float16, bfloat16 and rounding: every half, and the floats between and beside them.
#include "quant/format/block.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace nibble {
namespace {

/// What a float16 stands for, from its definition.
double value_of_half(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  const double magnitude =
      exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return half & 0x8000 ? -magnitude : magnitude;
}

TEST(Float16, EveryFiniteHalfIsExactAndComesBack) {
  for (int half = 0; half < 65536; ++half) {
    if ((half & 0x7c00) == 0x7c00) continue;
    const float x = float16_to_float(static_cast<uint16_t>(half));
    ASSERT_EQ(x, value_of_half(static_cast<uint16_t>(half)));
    ASSERT_EQ(float_to_float16(x), half);
  }
}

TEST(Float16, RoundsToNearestTiesToEven) {
  for (int half = 0; half < 0x7bff; ++half) {
    const double low = value_of_half(static_cast<uint16_t>(half));
    const double high = value_of_half(static_cast<uint16_t>(half + 1));
    const float middle = static_cast<float>((low + high) / 2);  // exact
    const int even = half % 2 ? half + 1 : half;
    ASSERT_EQ(float_to_float16(middle), even);
    ASSERT_EQ(float_to_float16(-middle), even | 0x8000);
    ASSERT_EQ(float_to_float16(std::nextafter(middle, 0.0f)), half);
    ASSERT_EQ(float_to_float16(std::nextafter(middle, 1e6f)), half + 1);
  }
}

TEST(Float16, SpecialNumbers) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(float_to_float16(65519.996f), 0x7bff);
  EXPECT_EQ(float_to_float16(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_float16(infinity), 0x7c00);
  EXPECT_EQ(float_to_float16(-infinity), 0xfc00);
  EXPECT_EQ(float16_to_float(0xfc00), -infinity);
  EXPECT_TRUE(std::isnan(float16_to_float(0x7e00)));
  EXPECT_TRUE(std::isnan(float16_to_float(float_to_float16(std::nanf("")))));
  EXPECT_EQ(float_to_float16(-1e-45f), 0x8000);
}

TEST(Bfloat16, RoundsToNearestTiesToEven) {
  EXPECT_EQ(float_to_bfloat16(1.0f), 0x3f80);
  EXPECT_EQ(float_to_bfloat16(float_of(0x3f808000u)), 0x3f80);
  EXPECT_EQ(float_to_bfloat16(float_of(0x3f818000u)), 0x3f82);
  EXPECT_EQ(float_to_bfloat16(float_of(0x3f808001u)), 0x3f81);
  EXPECT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(float_of(0x7f800001u)))));
}

TEST(Rounding, IsToEvenAndHasNoMinusZero) {
  for (float x = -300.0f; x <= 300.0f; x += 0.125f) {
    ASSERT_EQ(round_to_even(x), std::nearbyint(x)) << x;
    ASSERT_EQ(round_to_int(x), static_cast<int>(std::nearbyint(x))) << x;
  }
  EXPECT_FALSE(std::signbit(round_to_even(-0.25f)));
  EXPECT_FALSE(std::signbit(round_to_even(-0.0f)));
}

TEST(Snap, KeepsSignAndStaysAwayFromZeroAndInfinity) {
  EXPECT_EQ(snap_step(1e-20f), kMinStep);
  EXPECT_EQ(snap_step(-1e-20f), -kMinStep);
  EXPECT_EQ(snap_step(0.0f), 0.0f);
  EXPECT_EQ(snap_step(1e20f), kMaxScale);
  EXPECT_EQ(snap_step(-65519.0f), -kMaxScale);
  EXPECT_EQ(snap_offset(1e-20f), 0.0f);
  EXPECT_TRUE(std::isnan(snap_step(std::nanf(""))));
  EXPECT_TRUE(std::isfinite(inverse_of(kMinStep)));
}

}  // namespace
}  // namespace nibble
