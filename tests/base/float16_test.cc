#include "base/float16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibble {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The number that half-precision bits stand for, by the definition in IEEE 754.
double value_of_float16(uint16_t half) {
  const int exponent = (half >> 10) & 31, fraction = half & 1023;
  const double sign = half & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return fraction ? std::nan("") : sign * kInfinity;
  return sign *
         (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

TEST(Float16, EveryPatternDecodesToItsValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float found = float16_to_float(static_cast<uint16_t>(bits));
    const double wanted = value_of_float16(static_cast<uint16_t>(bits));
    if (std::isnan(wanted)) {
      ASSERT_TRUE(std::isnan(found)) << bits;
      continue;
    }
    ASSERT_EQ(found, wanted) << bits;
    ASSERT_EQ(std::signbit(found), std::signbit(wanted)) << bits;
    ASSERT_EQ(float_to_float16(found), bits);
  }
}

TEST(Float16, RoundsToNearestTiesToEvenBetweenAllNeighbours) {
  for (uint16_t bits = 0; bits < 0x7c00; ++bits) {
    const uint16_t next = bits + 1;
    // Beyond the largest number rounding goes to infinity from where the next power's half step
    // would lie.
    const double above = next == 0x7c00 ? 65536.0 : value_of_float16(next);
    const auto middle =
        static_cast<float>((value_of_float16(bits) + above) / 2);  // exact in float32
    ASSERT_EQ(float_to_float16(middle), bits % 2 == 0 ? bits : next) << bits;
    ASSERT_EQ(float_to_float16(std::nextafter(middle, 0.0f)), bits) << bits;
    ASSERT_EQ(float_to_float16(std::nextafter(middle, kInfinity)), next) << bits;
    ASSERT_EQ(float_to_float16(-middle), 0x8000 | (bits % 2 == 0 ? bits : next)) << bits;
  }
}

TEST(Float16, KeepsInfinityAndNan) {
  EXPECT_EQ(float_to_float16(kInfinity), 0x7c00);
  EXPECT_EQ(float_to_float16(-kInfinity), 0xfc00);
  EXPECT_EQ(float_to_float16(std::numeric_limits<float>::max()), 0x7c00);
  for (const uint32_t bits : {0x7f800001u, 0x7fc00000u, 0xffffffffu})
    EXPECT_TRUE(std::isnan(float16_to_float(float_to_float16(float_of(bits)))));
}

#if defined(__x86_64__)
__attribute__((target("f16c"))) uint16_t hardware_float16(float x) {
  return static_cast<uint16_t>(
      _mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT), 0));
}

TEST(Float16, EqualsTheProcessorsConversion) {
  if (!__builtin_cpu_supports("f16c")) GTEST_SKIP() << "this processor has no F16C";
  // A prime stride walks through all exponents and all low bits: 1 in 499 of the float32 numbers.
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += 499) {
    const float x = float_of(static_cast<uint32_t>(bits));
    if (std::isnan(x)) continue;  // payloads are not kept
    ASSERT_EQ(float_to_float16(x), hardware_float16(x)) << std::hex << bits;
  }
}
#endif

TEST(Bfloat16, EveryPatternIsTheUpperHalfOfAFloat) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float found = bfloat16_to_float(static_cast<uint16_t>(bits));
    ASSERT_EQ(bits_of(found), bits << 16);
    if (std::isnan(found)) {
      ASSERT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(found)))) << bits;
    } else {
      ASSERT_EQ(float_to_bfloat16(found), bits);
    }
  }
}

TEST(Bfloat16, RoundsToNearestTiesToEvenBetweenAllNeighbours) {
  for (uint32_t bits = 0; bits < 0x7f80; ++bits) {
    const float middle = float_of(bits << 16 | 0x8000u);
    const auto even = static_cast<uint16_t>(bits + bits % 2);
    ASSERT_EQ(float_to_bfloat16(middle), even) << bits;
    ASSERT_EQ(float_to_bfloat16(float_of(bits << 16 | 0x7fffu)), bits);
    ASSERT_EQ(float_to_bfloat16(float_of(bits << 16 | 0x8001u)), bits + 1);
    ASSERT_EQ(float_to_bfloat16(-middle), 0x8000 | even);
  }
}

}  // namespace
}  // namespace nibble
