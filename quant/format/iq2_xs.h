// IQ2_XS: 2.31 bits, decoded only. w = d * (t + 1/2) / 4 * level, levels 8, 25, 43 and their
// negatives. Block of 256 weights, 74 bytes: float16 d, for each 8 weights a 16-bit word (9-bit
// code, 7 bits of signs above it), then a 4-bit t for each 16 weights.
// Source: ggml/src/ggml-common.h (block_iq2_xs), ggml/src/ggml-quants.c (dequantize_row_iq2_xs).
#pragma once

#include "quant/format/iq.h"

namespace nibble {

struct IQ2_XS : IqFormat<IQ2_XS> {
  static constexpr GgmlType kType = GgmlType::kIQ2_XS;
  static constexpr int kFtype = 20;
  static constexpr GgmlType kNearest = GgmlType::kQ2_K;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    uint16_t qs[kBlockSize / 8];
    uint8_t scales[kBlockSize / 32];
  };
  static_assert(sizeof(Block) == 74);

  static NIBBLE_HD uint64_t levels(const Block& block, int group) {
    const uint32_t word = block.qs[group];
    return apply_signs(grid_point<Iq2XsGrid>(word & 511u), even_signs(word >> 9));
  }
  static NIBBLE_HD float step(const Block& block, int group) {
    const int t = block.scales[group / 4] >> group % 4 / 2 * 4 & 15;
    return float16_to_float(block.d) * (0.5f + static_cast<float>(t)) * 0.25f;
  }
};

}  // namespace nibble
