// Bits of codes in the bytes of blocks: nibbles and fifth bits of 32 weights; pairs, nibbles and
// single high bits of K-quants' 256. Little-endian, as the machine is.
#pragma once

#include "quant/format/block.h"
#include "quant/format/lanes.h"

namespace nibble {

/// Byte j holds weight j in its low and weight j + 16 in its high nibble.
NIBBLE_HD int nibble_of(const uint8_t* qs, int i) { return (qs[i % 16] >> (i / 16 * 4)) & 15; }

NIBBLE_HD uint32_t load_word(const uint8_t* bytes) {
  return static_cast<uint32_t>(bytes[0]) | static_cast<uint32_t>(bytes[1]) << 8 |
         static_cast<uint32_t>(bytes[2]) << 16 | static_cast<uint32_t>(bytes[3]) << 24;
}

/// 16 codes from weight `first` (0 or 16), less `shift`. One loop over bits whose places the
/// compiler can see, for it to vectorize.
NIBBLE_HD void unpack_4_bits(const uint8_t* qs, int first, int shift, int32_t* codes) {
  for (int k = 0; k < kChunk; ++k) codes[k] = ((qs[k] >> (first / 4)) & 15) - shift;
}

/// The same with bit i of a little-endian word as bit 4 of code i.
NIBBLE_HD void unpack_5_bits(const uint8_t* qs, const uint8_t* qh, int first, int shift,
                             int32_t* codes) {
  const uint32_t fifth = load_word(qh) >> first;
  int32_t high[kChunk];
  NIBBLE_EACH_LANE (k, kChunk) high[k] = static_cast<int32_t>((fifth >> k & 1u) << 4);
  for (int k = 0; k < kChunk; ++k) codes[k] = (((qs[k] >> (first / 4)) & 15) | high[k]) - shift;
}

/// Bit i of a little-endian word.
NIBBLE_HD int bit_of(const uint8_t* qh, int i) { return (qh[i / 8] >> (i % 8)) & 1; }

/// Eight codes as one word, each plus `shift` in its own byte and cut to the bits of `mask`, which
/// is less than 128. (Byte by byte, packing would take most of the time of an encoder.)
NIBBLE_HD uint64_t shifted_codes(const int8_t* codes, int shift, int mask) {
  constexpr uint64_t kEach = 0x0101010101010101u;
  uint64_t word;
  memcpy(&word, codes, sizeof word);
  const uint64_t masks = kEach * static_cast<uint64_t>(mask);
  return ((word & masks) + kEach * static_cast<uint64_t>(shift & mask)) & masks;
}

/// Stores the low 4 bits of q + shift.
NIBBLE_HD void pack_nibbles(const int8_t* codes, int shift, uint8_t* qs) {
  for (int j = 0; j < 16; j += 8) {
    const uint64_t eight =
        shifted_codes(codes + j, shift, 15) | shifted_codes(codes + j + 16, shift, 15) << 4;
    memcpy(qs + j, &eight, sizeof eight);
  }
}

/// Stores bit 4 of q + shift.
NIBBLE_HD void pack_fifth_bits(const int8_t* codes, int shift, uint8_t* qh) {
  for (int byte = 0; byte < 4; ++byte) {
    const uint64_t bits = shifted_codes(codes + 8 * byte, shift, 31) >> 4 & 0x0101010101010101u;
    // Brings bit 8 k to bit 56 + k; no two products fall on one bit.
    qh[byte] = static_cast<uint8_t>(bits * 0x0102040810204080u >> 56);
  }
}

/// Q2_K, Q3_K: byte 32 (i / 128) + i mod 32 of `qs` holds weight i in bits 2 k and 2 k + 1, with k
/// = i mod 128 / 32.
NIBBLE_HD const uint8_t* k_pairs(const uint8_t* qs, int first) {
  return qs + first / 128 * 32 + first % 32;
}
NIBBLE_HD int k_pair_shift(int first) { return first % 128 / 32 * 2; }

/// Stores the low 2 bits of 256 codes.
NIBBLE_HD void pack_k_pairs(const int8_t* codes, uint8_t* qs) {
  for (int half = 0; half < 2; ++half) {
    const int8_t* low = codes + 128 * half;
    for (int l = 0; l < 32; ++l) {
      const int pairs =
          (low[l] & 3) | (low[l + 32] & 3) << 2 | (low[l + 64] & 3) << 4 | (low[l + 96] & 3) << 6;
      qs[32 * half + l] = static_cast<uint8_t>(pairs);
    }
  }
}

/// Q4_K, Q5_K: byte 32 (i / 64) + i mod 32 of `qs` holds weight i in its low nibble for i mod 64 <
/// 32, else in its high one.
NIBBLE_HD const uint8_t* k_nibbles(const uint8_t* qs, int first) {
  return qs + first / 64 * 32 + first % 32;
}
NIBBLE_HD int k_nibble_shift(int first) { return first % 64 / 32 * 4; }

/// Stores the low 4 bits of 256 codes.
NIBBLE_HD void pack_k_nibbles(const int8_t* codes, uint8_t* qs) {
  for (int pair = 0; pair < 4; ++pair) {
    const int8_t* low = codes + 64 * pair;
    for (int l = 0; l < 32; ++l)
      qs[32 * pair + l] = static_cast<uint8_t>((low[l] & 15) | (low[l + 32] & 15) << 4);
  }
}

/// Q3_K, Q5_K: stores bit `bit` of q + shift of weight i as bit i / 32 of byte i mod 32.
NIBBLE_HD void pack_k_high_bits(const int8_t* codes, int shift, int bit, uint8_t* bytes) {
  for (int j = 0; j < 32; ++j) {
    int bits = 0;
    for (int group = 0; group < 8; ++group)
      bits |= ((codes[group * 32 + j] + shift) >> bit & 1) << group;
    bytes[j] = static_cast<uint8_t>(bits);
  }
}

}  // namespace nibble
