// Bits of codes in the bytes of 32-weight blocks: nibbles and fifth bits. Little-endian, whatever
// the machine.
#pragma once

#include "quant/format/block.h"

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
  for (int k = 0; k < kChunk; ++k) {
    const int high = static_cast<int>((fifth >> k & 1u) << 4);
    codes[k] = (((qs[k] >> (first / 4)) & 15) | high) - shift;
  }
}

/// Bit i of a little-endian word.
NIBBLE_HD int bit_of(const uint8_t* qh, int i) { return (qh[i / 8] >> (i % 8)) & 1; }

/// Stores the low 4 bits of q + shift.
NIBBLE_HD void pack_nibbles(const int8_t* codes, int shift, uint8_t* qs) {
  for (int j = 0; j < 16; ++j) {
    const int low = (codes[j] + shift) & 15;
    const int high = (codes[j + 16] + shift) & 15;
    qs[j] = static_cast<uint8_t>(low | high << 4);
  }
}

/// Stores bit 4 of q + shift.
NIBBLE_HD void pack_fifth_bits(const int8_t* codes, int shift, uint8_t* qh) {
  for (int byte = 0; byte < 4; ++byte) {
    int bits = 0;
    for (int k = 0; k < 8; ++k) bits |= ((codes[8 * byte + k] + shift) >> 4 & 1) << k;
    qh[byte] = static_cast<uint8_t>(bits);
  }
}

}  // namespace nibble
