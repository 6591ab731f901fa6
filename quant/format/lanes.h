// Numbers of several groups of weights in lanes: number i of group l lies at [i * kLanes + l]. What
// is done to all groups at once is a loop over lanes inside one over i: compilers make vectors
// across groups, and no group's sums are reordered.
#pragma once

#include <cstring>

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

/// Before a loop of at most 8 rounds: all of them one after the other.
#if defined(__CUDACC__)
#define NIBBLE_UNROLL
#else
#define NIBBLE_UNROLL _Pragma("GCC unroll 8")
#endif

/// A choice between two numbers that is no branch, for loops where `?:` becomes one.
NIBBLE_HD uint32_t bits_where(bool condition) { return 0u - static_cast<uint32_t>(condition); }
NIBBLE_HD float choose_bits(uint32_t bits, float there, float elsewhere) {
  return float_of((bits & bits_of(there)) | (~bits & bits_of(elsewhere)));
}

/// Four by four numbers: number i of row l, at rows[l * row_stride + i], to
/// columns[i * column_stride + l].
NIBBLE_HD void transpose_four(const float* rows, int row_stride, float* columns,
                              int column_stride) {
#if defined(__GNUC__) && !defined(__CUDACC__)
  // In vectors, which compilers do not make of the loops below.
  using Four = float __attribute__((vector_size(16)));
  Four row[4], column[4];
  for (int l = 0; l < 4; ++l) std::memcpy(&row[l], rows + l * row_stride, sizeof row[l]);
  const Four a = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
  const Four b = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
  const Four c = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
  const Four d = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
  column[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  column[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  column[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  column[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
  for (int i = 0; i < 4; ++i)
    std::memcpy(columns + i * column_stride, &column[i], sizeof column[i]);
#else
  for (int i = 0; i < 4; ++i) {
    for (int l = 0; l < 4; ++l) columns[i * column_stride + l] = rows[l * row_stride + i];
  }
#endif
}

/// From group after group to lanes.
template <int kSize, int kLanes>
NIBBLE_HD void to_lanes(const float* groups, float* lanes) {
  if constexpr (kSize % 4 == 0 && kLanes % 4 == 0) {
    for (int first = 0; first < kLanes; first += 4) {
      for (int i = 0; i < kSize; i += 4)
        transpose_four(groups + first * kSize + i, kSize, lanes + i * kLanes + first, kLanes);
    }
  } else {
    for (int i = 0; i < kSize; ++i) {
      for (int l = 0; l < kLanes; ++l) lanes[i * kLanes + l] = groups[l * kSize + i];
    }
  }
}

template <int kSize, int kLanes>
NIBBLE_HD void sum_lanes(const float* x, float* sums) {
  NIBBLE_EACH_LANE (l, kLanes) sums[l] = 0.0f;
  for (int first = 0; first < kSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) sums[l] += x[first + l];
  }
}

template <int kSize, int kLanes>
NIBBLE_HD void lane_ranges(const float* x, float* mins, float* maxs) {
  NIBBLE_EACH_LANE (l, kLanes) mins[l] = maxs[l] = x[l];
  for (int first = kLanes; first < kSize * kLanes; first += kLanes) {
    NIBBLE_EACH_LANE (l, kLanes) {
      const float value = x[first + l];
      mins[l] = value < mins[l] ? value : mins[l];
      maxs[l] = value > maxs[l] ? value : maxs[l];
    }
  }
}

}  // namespace nibble
