// Sixteen floats at a time, in GCC's vector extension: each operation is done lane by lane, so a
// loop gives the same bits on every instruction set. NIBBLE_CLONES compiles a function once per
// x86-64 level and picks one at load time.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define NIBBLE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NIBBLE_CLONES  // sanitizers start after the loader has picked a clone
#endif
#define NIBBLE_INLINE inline __attribute__((always_inline))

namespace nibble {

constexpr int64_t kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t IntLanes __attribute__((vector_size(kLanes * sizeof(int32_t))));

// Vectors travel by reference: passing them by value would depend on the instruction set.
NIBBLE_INLINE void load_lanes(Lanes& out, const float* from) {
  std::memcpy(&out, from, sizeof out);
}
NIBBLE_INLINE void store_lanes(float* to, const Lanes& from) {
  std::memcpy(to, &from, sizeof from);
}
/// `count` < kLanes elements; the other lanes are `rest`.
NIBBLE_INLINE void load_some(Lanes& out, const float* from, int64_t count, float rest) {
  out = Lanes{} + rest;
  for (int64_t i = 0; i < count; ++i) out[i] = from[i];
}
NIBBLE_INLINE void store_some(float* to, const Lanes& from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}
NIBBLE_INLINE float sum_lanes(const Lanes& x) {
  float sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

/// x := e^x for x <= 88, relative error below 2e-7; 0 below -87. 2^n * e^r with |r| <= ln(2)/2 and
/// e^r by its Taylor polynomial of degree 7, whose remainder (0.35^8 / 8!) is below half a unit in
/// the last place.
NIBBLE_INLINE void exp_lanes(Lanes& x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Lanes clamped = x < -87.0f ? Lanes{} - 87.0f : x;
  const Lanes shifted = clamped * 1.44269504f + kRound;
  const Lanes n = shifted - kRound;
  const Lanes r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
  Lanes p = Lanes{} + 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  IntLanes bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127 << 23);  // the integer sits in the low bits of `shifted`
  Lanes scale;
  std::memcpy(&scale, &bits, sizeof scale);
  x = x < -87.0f ? Lanes{} : p * scale;
}

}  // namespace nibble
