// IQ2_S: 2.56 bits, decoded only. w = d * (t + 1/2) / 4 * level, levels 8, 25, 43 and their
// negatives. Block of 256 weights, 82 bytes: float16 d, for each 8 weights the low 8 bits of a
// 10-bit code, then for each a byte of signs; qh: the codes' high bits, 2 for each, the lowest
// first; a 4-bit t for each 16 weights.
// Source: ggml/src/ggml-common.h (block_iq2_s), ggml/src/ggml-quants.c (dequantize_row_iq2_s).
#pragma once

#include "quant/format/iq.h"

namespace nibble {

struct IQ2_S : IqFormat<IQ2_S> {
  static constexpr GgmlType kType = GgmlType::kIQ2_S;
  static constexpr int kFtype = 28;
  static constexpr GgmlType kNearest = GgmlType::kQ2_K;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    uint8_t qs[kBlockSize / 8];
    uint8_t signs[kBlockSize / 8];
    uint8_t qh[kBlockSize / 32];
    uint8_t scales[kBlockSize / 32];
  };
  static_assert(sizeof(Block) == 82);

  static NIBBLE_HD uint64_t levels(const Block& block, int group) {
    const int high = block.qh[group / 4] >> group % 4 * 2 & 3;
    return apply_signs(grid_point<Iq2SGrid>(block.qs[group] | high << 8), block.signs[group]);
  }
  static NIBBLE_HD float step(const Block& block, int group) {
    const int t = block.scales[group / 4] >> group % 4 / 2 * 4 & 15;
    return float16_to_float(block.d) * (0.5f + static_cast<float>(t)) * 0.25f;
  }
};

}  // namespace nibble
