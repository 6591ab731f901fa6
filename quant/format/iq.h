// Formats that nibble decodes but does not encode: the IQ1, IQ2 and IQ3 types, in which a code
// stands for 8 weights, or 4, of a codebook (iq_grids.h). A format F derives from IqFormat<F> and
// gives
//   kType, kFtype, kNearest (the type to encode instead), Block,
//   levels(block, group) -> 8 levels with their signs, int8's of a word, the first in the lowest
//   byte, and step(block, group): w = step * level
// and, where all levels of a group are shifted, shift(block, group): w = step * (level + shift).
// One rounding per operation, in ggml's order.
#pragma once

#include <cstring>

#include "io/ggml_type.h"
#include "quant/format/block.h"
#include "quant/format/iq_grids.h"
#include "quant/format/packing.h"

namespace nibble {

/// Whether formats.def has F among those that are only decoded.
template <class F>
constexpr bool kDecodeOnly = requires {
  F::kNearest;
};

template <class F>
struct IqFormat {
  static constexpr int kBlockSize = 256;
  static constexpr int kGroupSize = 8;
  static constexpr int kGroups = kBlockSize / kGroupSize;

  template <class Block>
  static NIBBLE_HD float shift(const Block&, int) {
    return 0.0f;
  }

  /// out: the kGroupSize weights of a group.
  template <class Block>
  static NIBBLE_HD void decode_group(const Block& block, int group, float* out) {
    const uint64_t levels = F::levels(block, group);
    const float step = F::step(block, group), shift = F::shift(block, group);
    for (int k = 0; k < kGroupSize; ++k)
      out[k] = step * (static_cast<float>(static_cast<int8_t>(levels >> 8 * k)) + shift);
  }

  /// out: kBlockSize weights. In passes over the block, each of which a compiler makes vector code
  /// of; and it need not fear that writing weights changes the block.
  template <class Block>
  static NIBBLE_HD void decode(const Block& block, float* out) {
    float steps[kGroups], shifts[kGroups], levels[kBlockSize];
    int8_t bytes[kBlockSize];
    for (int group = 0; group < kGroups; ++group) {
      const uint64_t word = F::levels(block, group);
      std::memcpy(bytes + group * kGroupSize, &word, sizeof word);
    }
    for (int group = 0; group < kGroups; ++group) {
      steps[group] = F::step(block, group);
      shifts[group] = F::shift(block, group);
    }
    for (int i = 0; i < kBlockSize; ++i) levels[i] = static_cast<float>(bytes[i]);
    for (int group = 0; group < kGroups; ++group) {
      for (int i = group * kGroupSize; i < (group + 1) * kGroupSize; ++i)
        out[i] = steps[group] * (levels[i] + shifts[group]);
    }
  }

  /// Levels as codes, of kChunk weights from `first` on.
  template <class Block>
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* codes) {
    for (int part = 0; part < kChunk; part += kGroupSize) {
      const uint64_t levels = F::levels(block, (first + part) / kGroupSize);
      for (int k = 0; k < kGroupSize; ++k) codes[part + k] = static_cast<int8_t>(levels >> 8 * k);
    }
  }
};

/// Negates the int8's of `levels` whose bit is set among the 8 of `signs`; none of them is 0.
NIBBLE_HD uint64_t apply_signs(uint64_t levels, uint32_t signs) {
  constexpr uint64_t kOnes = 0x0101010101010101u;
  // Bit k of byte k, then at the top of the byte, whatever its number, then in all of the byte.
  const uint64_t spread = signs * kOnes & 0x8040201008040201u;
  const uint64_t negative = (spread + 0x7f7f7f7f7f7f7f7fu) >> 7 & kOnes;
  return (levels ^ negative * 255u) + negative;
}

/// 1/8, or -1/8 where `negative` is 1: by its bits, since a branch would be wrong half the time.
NIBBLE_HD float signed_eighth(uint32_t negative) { return float_of(0x3e000000u | negative << 31); }

/// Two points of 4 weights one after the other.
NIBBLE_HD uint64_t join_points(uint32_t first, uint32_t second) {
  return first | static_cast<uint64_t>(second) << 32;
}

/// The 8 signs behind 7 bits: the eighth makes the number of negative ones even.
NIBBLE_HD uint32_t even_signs(uint32_t seven) {
  const uint32_t folded = seven ^ seven >> 4;
  // Bit n of 0x6996 is the parity of the four bits of n.
  return seven | (0x6996u >> (folded & 15u) & 1u) << 7;
}

}  // namespace nibble
