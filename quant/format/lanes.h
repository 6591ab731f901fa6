// Numbers of several groups of weights in lanes: number i of group l lies at [i * kLanes + l]. What
// is done to all groups at once is a loop over lanes inside one over i: compilers make vectors
// across groups, and no group's sums are reordered.
#pragma once

#include "base/float16.h"
#include "base/host_device.h"

namespace nibble {

/// A loop over lanes, whole until the vectorizer has seen it: g++ would unroll short ones before,
/// and what they choose between would become branches.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define NIBBLE_EACH_LANE(l, count) _Pragma("GCC unroll 1") for (int l = 0; l < (count); ++l)
#else
#define NIBBLE_EACH_LANE(l, count) for (int l = 0; l < (count); ++l)
#endif

/// A choice between two numbers that is no branch, for loops where `?:` becomes one.
NIBBLE_HD uint32_t bits_where(bool condition) { return 0u - static_cast<uint32_t>(condition); }
NIBBLE_HD float choose_bits(uint32_t bits, float there, float elsewhere) {
  return float_of((bits & bits_of(there)) | (~bits & bits_of(elsewhere)));
}

/// From group after group to lanes.
template <int kSize, int kLanes>
NIBBLE_HD void to_lanes(const float* groups, float* lanes) {
  for (int i = 0; i < kSize; ++i) {
    NIBBLE_EACH_LANE (l, kLanes) lanes[i * kLanes + l] = groups[l * kSize + i];
  }
}

template <int kSize, int kLanes>
NIBBLE_HD void sum_lanes(const float* x, float* sums) {
  NIBBLE_EACH_LANE (l, kLanes) sums[l] = 0.0f;
  for (int first = 0; first < kSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) sums[l] += x[first + l];
  }
}

}  // namespace nibble
