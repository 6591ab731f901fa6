// IQ1_S: 1.56 bits, decoded only. w = d * (2 t + 1) * (level + shift), levels -1, 0, 1, shift 1/8
// or -1/8. Block of 256 weights, 50 bytes: float16 d, the low 8 bits of an 11-bit code for each 8
// weights, then a 16-bit word for each 32: the codes' high bits, 3 for each, the lowest first, the
// 3-bit t, and whether the shift is negative.
// Source: ggml/src/ggml-common.h (block_iq1_s), ggml/src/ggml-quants.c (dequantize_row_iq1_s).
#pragma once

#include "quant/format/iq.h"

namespace nibble {

struct IQ1_S : IqFormat<IQ1_S> {
  static constexpr GgmlType kType = GgmlType::kIQ1_S;
  static constexpr int kFtype = 24;
  static constexpr GgmlType kNearest = GgmlType::kTQ1_0;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    uint8_t qs[kBlockSize / 8];
    uint16_t qh[kBlockSize / 32];
  };
  static_assert(sizeof(Block) == 50);

  static NIBBLE_HD uint64_t levels(const Block& block, int group) {
    const int high = block.qh[group / 4] >> group % 4 * 3 & 7;
    return grid_point<Iq1Grid>(block.qs[group] | high << 8);
  }
  static NIBBLE_HD float step(const Block& block, int group) {
    const int t = block.qh[group / 4] >> 12 & 7;
    return float16_to_float(block.d) * static_cast<float>(2 * t + 1);
  }
  static NIBBLE_HD float shift(const Block& block, int group) {
    return signed_eighth(block.qh[group / 4] >> 15);
  }
};

}  // namespace nibble
