// IQ1_M: 1.75 bits, decoded only. w = d * (2 t + 1) * (level + shift), levels -1, 0, 1, shift 1/8
// or -1/8. Block of 256 weights, 56 bytes: the low 8 bits of an 11-bit code for each 8 weights; qh:
// a nibble for each, the code's high 3 bits and whether the shift is negative; four 16-bit words,
// each a 3-bit t for each 16 of 64 weights, the lowest first, and 4 bits of the float16 d, the
// lowest first.
// Source: ggml/src/ggml-common.h (block_iq1_m), ggml/src/ggml-quants.c (dequantize_row_iq1_m).
#pragma once

#include "quant/format/iq.h"

namespace nibble {

struct IQ1_M : IqFormat<IQ1_M> {
  static constexpr GgmlType kType = GgmlType::kIQ1_M;
  static constexpr int kFtype = 31;
  static constexpr GgmlType kNearest = GgmlType::kTQ1_0;

  struct NIBBLE_PACKED Block {
    uint8_t qs[kBlockSize / 8];
    uint8_t qh[kBlockSize / 16];
    uint16_t scales[kBlockSize / 64];
  };
  static_assert(sizeof(Block) == 56);

  static NIBBLE_HD uint32_t high_nibble(const Block& block, int group) {
    return block.qh[group / 2] >> group % 2 * 4 & 15;
  }
  static NIBBLE_HD float d(const Block& block) {
    int bits = 0;
    for (int k = 0; k < 4; ++k) bits |= block.scales[k] >> 12 << 4 * k;
    return float16_to_float(static_cast<uint16_t>(bits));
  }

  static NIBBLE_HD uint64_t levels(const Block& block, int group) {
    return grid_point<Iq1Grid>(block.qs[group] | (high_nibble(block, group) & 7) << 8);
  }
  static NIBBLE_HD float step(const Block& block, int group) {
    const int t = block.scales[group / 8] >> group % 8 / 2 * 3 & 7;
    return d(block) * static_cast<float>(2 * t + 1);
  }
  static NIBBLE_HD float shift(const Block& block, int group) {
    return signed_eighth(high_nibble(block, group) >> 3);
  }
};

}  // namespace nibble
