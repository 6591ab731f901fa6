// Levels that are not evenly spaced: a table of integers. A format F with `using Levels =
// Codebook<...>` has its weights rounded to them instead of to the integers from kQMin to kQMax;
// its q's are the levels themselves, which pack() and unpack() turn into codes and back.
#pragma once

#include <cstdint>
#include <utility>

#include "quant/format/uniform.h"

namespace nibble {

/// Which of its two levels a weight half-way between them gets.
enum class Ties { kUp, kTowardZero };

/// kLevels: ascending, within an int8.
template <Ties kTies, int... kLevels>
struct Codebook {
  static constexpr int kCount = sizeof...(kLevels);
  static NIBBLE_HD constexpr int at(int i) {
    constexpr int levels[] = {kLevels...};
    return levels[i];
  }

  /// The level of least |level - x|. A NaN stays NaN.
  static NIBBLE_HD float nearest(float x) {
    return climb(x, std::make_integer_sequence<int, kCount - 1>());
  }
  /// No further beyond the outer levels than `margin` times their distance to the next.
  static NIBBLE_HD bool in_range(float x, float margin) {
    const float lowest = at(0) - margin * (at(1) - at(0));
    const float highest = at(kCount - 1) + margin * (at(kCount - 1) - at(kCount - 2));
    return (x >= lowest) & (x <= highest);
  }
  /// i of the highest at(i) that is not above q, at least 0.
  static NIBBLE_HD int index_of(int q) {
    return count_below(q, std::make_integer_sequence<int, kCount - 1>());
  }

 private:
  /// A chain of choices and no look-up, so that loops over it vectorize.
  template <int... i>
  static NIBBLE_HD float climb(float x, std::integer_sequence<int, i...>) {
    constexpr float least = at(0);
    x = least > x ? least : x;
    float level = least < x ? least : x;  // a NaN stays NaN
    ((level = is_above<i>(x) ? static_cast<float>(at(i + 1)) : level), ...);
    return level;
  }
  /// Whether x is nearer to level i + 1 than to level i.
  template <int i>
  static NIBBLE_HD bool is_above(float x) {
    constexpr float middle = 0.5f * (at(i) + at(i + 1));
    return kTies == Ties::kTowardZero && middle > 0.0f ? x > middle : x >= middle;
  }
  template <int... i>
  static NIBBLE_HD int count_below(int q, std::integer_sequence<int, i...>) {
    return ((q >= at(i + 1) ? 1 : 0) + ...);
  }
};

/// Four int8's of a table, from number `first` on, the first in the lowest byte.
template <int... kValues>
constexpr uint32_t word_of_table(int first) {
  constexpr int values[] = {kValues...};
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i)
    word |= static_cast<uint32_t>(static_cast<uint8_t>(values[first + i])) << 8 * i;
  return word;
}

/// Number `code` (0 to 15) of a table of sixteen int8's, which lies in registers: loops over it
/// vectorize.
template <int... kValues>
NIBBLE_HD int32_t table_value(uint32_t code) {
  static_assert(sizeof...(kValues) == 16);
  constexpr uint32_t first = word_of_table<kValues...>(0), second = word_of_table<kValues...>(4);
  constexpr uint32_t third = word_of_table<kValues...>(8), fourth = word_of_table<kValues...>(12);
  const uint32_t bit_2 = 0u - (code >> 2 & 1u), bit_3 = 0u - (code >> 3 & 1u);
  const uint32_t low = first ^ ((first ^ second) & bit_2);
  const uint32_t high = third ^ ((third ^ fourth) & bit_2);
  const uint32_t word = low ^ ((low ^ high) & bit_3);
  // The value to the top byte, then down with its sign.
  return static_cast<int32_t>(word << 8 * (~code & 3)) >> 24;
}

}  // namespace nibble
