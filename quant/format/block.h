// What all block formats share: unaligned blocks, scales as float16, the grid of a group of
// weights, and rounding that is the same on every instruction set and on CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/float16.h"
#include "base/host_device.h"

namespace nibble {

/// Weights that decode() unpacks at a time.
constexpr int kChunk = 16;

/// Levels of a group of weights: value = step * q (+ offset), q an integer. inverse is 1 / step, or
/// 0 for step 0.
struct Grid {
  float step;
  float inverse;
  float offset;
};

/// Blocks lie in files and tensors at any address: NIBBLE_PACKED gives a Block alignment 1, so that
/// it is read in place. (A copy made by memcpy goes through general registers, and vector loads
/// from it then stall.)
#define NIBBLE_PACKED __attribute__((packed, may_alias))

template <class Block>
NIBBLE_HD const Block& block_at(const std::byte* bytes) {
  static_assert(alignof(Block) == 1);
  return *reinterpret_cast<const Block*>(bytes);
}

template <class Block>
NIBBLE_HD Block& block_at(std::byte* bytes) {
  static_assert(alignof(Block) == 1);
  return *reinterpret_cast<Block*>(bytes);
}

/// `lo > x` and not `x < lo`: a NaN stays NaN, so that training sees it, and one instruction does
/// it.
NIBBLE_HD float clamp_to(float x, float lo, float hi) {
  x = lo > x ? lo : x;
  return hi < x ? hi : x;
}

/// Adding 1.5 * 2^23 leaves no fraction bits: ties to even, for |x| < 2^22. Never gives -0.
constexpr float kRoundingBias = 12582912.0f;
constexpr uint32_t kRoundingBiasBits = 0x4b400000u;
NIBBLE_HD float round_to_even(float x) { return (x + kRoundingBias) - kRoundingBias; }
/// The same as an integer; any bits for a NaN, but nothing undefined.
NIBBLE_HD int32_t round_to_int(float x) {
  return static_cast<int32_t>(bits_of(x + kRoundingBias) - kRoundingBiasBits);
}

/// The largest float16.
constexpr float kMaxScale = 65504.0f;
/// 2^-24, the smallest positive float16: below it a trained scale would become 0 and never leave
/// it.
constexpr float kMinStep = 5.9604644775390625e-8f;

/// The nearest float16, infinity excluded.
NIBBLE_HD float snap_offset(float m) {
  return float16_to_float(float_to_float16(clamp_to(m, -kMaxScale, kMaxScale)));
}

/// The same for a step: its sign is kept and |d| >= 2^-24, except that exactly 0 stays 0.
NIBBLE_HD float snap_step(float d) {
  const float snapped = snap_offset(d);
  const float smallest = d < 0.0f ? -kMinStep : kMinStep;
  return snapped == 0.0f && d != 0.0f ? smallest : snapped;
}

/// 1 / d for a step; |d| >= 2^-24 keeps it finite. Divided first and chosen then, without a branch.
NIBBLE_HD float inverse_of(float d) {
  const float inverse = 1.0f / d;
  return d != 0.0f ? inverse : 0.0f;
}

}  // namespace nibble
