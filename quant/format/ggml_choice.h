// The scales and codes that llama-quantize chooses for one grid without importance, to the byte:
// every operation and every sum in its order. Facts from ggml/src/ggml-quants.c
// (quantize_row_*_ref) as of llama.cpp in llama-cpp-python 0.3.36. Encoding goes by the unrounded
// scale there, so codes need not be the nearest for the stored one.
#pragma once

#include <cmath>

#include "quant/format/block.h"

namespace nibble {

/// Scales before rounding to float16 (m only with an offset) and codes counted from 0.
template <int kBlockSize>
struct BlockChoice {
  float d = 0.0f;
  float m = 0.0f;
  uint8_t codes[kBlockSize];
};

/// What x86's cvttss2si gives, also where C++ leaves the conversion undefined.
NIBBLE_HD int32_t truncate_to_int(float x) {
  return x > -2147483648.0f && x < 2147483648.0f ? static_cast<int32_t>(x) : INT32_MIN;
}

/// roundf for |x| < 2^23: ties away from zero. 0.49999997 so that the float below 0.5 rounds to 0.
NIBBLE_HD int32_t round_half_away(float x) {
  return truncate_to_int(x + std::copysign(0.49999997f, x));
}

/// The element of largest magnitude, the first one of several; 0 where all are. x: finite.
NIBBLE_HD float signed_extreme(const float* x, int count) {
  // Bits without the sign are ordered as magnitudes are. One loop finds the largest, one where it
  // is first: in neither does an element wait for the one before, so that both vectorize.
  int32_t largest = 0, first = count;
  for (int i = 0; i < count; ++i) {
    const auto magnitude = static_cast<int32_t>(bits_of(x[i]) & 0x7fffffffu);
    largest = magnitude > largest ? magnitude : largest;
  }
  for (int i = 0; i < count; ++i) {
    const auto magnitude = static_cast<int32_t>(bits_of(x[i]) & 0x7fffffffu);
    const int32_t place = magnitude == largest ? i : count;
    first = place < first ? place : first;
  }
  return largest != 0 ? x[first] : 0.0f;
}

/// ggml weighs an imatrix row by sqrt(sigma2 + x^2), sigma2 the mean square of the row.
NIBBLE_HD float mean_square(const float* row, int64_t length) {
  float sum = 0.0f;
  for (int64_t i = 0; i < length; ++i) sum += row[i] * row[i];
  return sum / static_cast<float>(length);
}

template <int kBlockSize>
NIBBLE_HD void weigh(const float* x, const float* importance, float sigma2, float* weights) {
  for (int i = 0; i < kBlockSize; ++i) {
    weights[i] = importance[i] * std::sqrt(sigma2 + x[i] * x[i]);
  }
}

/// Q4_0, Q5_0: the extreme element becomes code 0 (q = -2^(bits-1)).
template <int kBlockSize>
NIBBLE_HD BlockChoice<kBlockSize> ggml_extreme_choice(const float* x, int half_range) {
  BlockChoice<kBlockSize> choice;
  choice.d = signed_extreme(x, kBlockSize) / static_cast<float>(-half_range);
  const float inverse = choice.d != 0.0f ? 1.0f / choice.d : 0.0f;
  const int32_t largest = 2 * half_range - 1;
  for (int i = 0; i < kBlockSize; ++i) {
    const float shifted = x[i] * inverse + (static_cast<float>(half_range) + 0.5f);
    const int32_t code = static_cast<int8_t>(truncate_to_int(shifted));
    choice.codes[i] = static_cast<uint8_t>(code < largest ? code : largest);
  }
  return choice;
}

/// Q4_1, Q5_1: the range of the block, its minimum at code 0.
template <int kBlockSize>
NIBBLE_HD BlockChoice<kBlockSize> ggml_range_choice(const float* x, int largest) {
  BlockChoice<kBlockSize> choice;
  float min = x[0], max = x[0];
  for (int i = 1; i < kBlockSize; ++i) {
    if (x[i] < min) min = x[i];
    if (x[i] > max) max = x[i];
  }
  choice.m = min;
  choice.d = (max - min) / static_cast<float>(largest);
  const float inverse = choice.d != 0.0f ? 1.0f / choice.d : 0.0f;
  for (int i = 0; i < kBlockSize; ++i) {
    const int32_t code = static_cast<int8_t>(truncate_to_int((x[i] - min) * inverse + 0.5f));
    choice.codes[i] = static_cast<uint8_t>(code < largest ? code : largest);
  }
  return choice;
}

/// ggml's nearest_int: round_to_int, with its wrap-around beyond 2^22.
NIBBLE_HD int32_t ggml_nearest_int(float x) {
  return static_cast<int32_t>(bits_of(x + kRoundingBias) & 0x007fffffu) - 0x00400000;
}

NIBBLE_HD int32_t ggml_code(float x, int32_t lo, int32_t hi) {
  const int32_t code = ggml_nearest_int(x);
  return code < lo ? lo : code > hi ? hi : code;
}

/// ggml's GROUP_MAX_EPS: below it a group of weights is all zero.
constexpr float kGgmlGroupEpsilon = 1e-15f;

}  // namespace nibble
