// IEEE half precision (float16) and bfloat16 as bit patterns: conversions to and from float32,
// rounding to nearest, ties to even, on host and device with the same result as F16C, ggml and CUDA
// for every number (NaN stays NaN; its payload is not kept). On the device they are its own
// instructions, which round the same way.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/host_device.h"

namespace nibble {

NIBBLE_HD uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

NIBBLE_HD float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

/// float16 bits -> float32, exact. Branch-free in the normal range so that loops over it vectorize.
NIBBLE_HD float float16_to_float(uint16_t half) {
#if defined(__CUDA_ARCH__)
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
#else
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  // Multiplying by 2^112 moves the exponent from half's bias to float's and is exact for subnormals
  // too.
  const float scaled = float_of(magnitude) * float_of(0x77800000u);
  const uint32_t special = (half & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return float_of(bits_of(scaled) | special | sign);
#endif
}

/// float32 -> float16 bits; overflow gives infinity. All cases are computed and one is chosen,
/// without a branch, so that loops over it vectorize.
NIBBLE_HD uint16_t float_to_float16(float x) {
#if defined(__CUDA_ARCH__)
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
#else
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t odd = (magnitude >> 13) & 1u;
  const uint32_t normal = (magnitude + 0xc8000fffu + odd) >> 13;
  // Below 2^-14: adding 0.5 rounds to a multiple of 2^-24.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  // 2^16 and above, infinity, NaN.
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? special : finite));
#endif
}

/// bfloat16 bits -> float32, exact.
NIBBLE_HD float bfloat16_to_float(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }

/// float32 -> bfloat16 bits.
NIBBLE_HD uint16_t float_to_bfloat16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t bfloat;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bfloat) : "f"(x));
  return bfloat;
#else
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 64u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

}  // namespace nibble
