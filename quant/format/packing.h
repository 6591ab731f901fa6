// Bits of codes in the bytes of 32-weight blocks: nibbles and fifth bits.
#pragma once

#include "quant/format/block.h"

namespace nibble {

/// Byte j holds weight j in its low and weight j + 16 in its high nibble.
NIBBLE_HD int nibble_of(const uint8_t* qs, int i) { return (qs[i % 16] >> (i / 16 * 4)) & 15; }

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
