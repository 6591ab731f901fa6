// IQ2_XXS: 2.06 bits, decoded only. w = d * (t + 1/2) / 4 * level, levels 8, 25, 43 and their
// negatives. Block of 256 weights, 66 bytes: float16 d, then for each 32 weights four codes of 8
// weights and a 32-bit word: 7 bits of signs for each code, the lowest first, and the 4-bit t.
// Source: ggml/src/ggml-common.h (block_iq2_xxs), ggml/src/ggml-quants.c (dequantize_row_iq2_xxs).
#pragma once

#include "quant/format/iq.h"

namespace nibble {

struct IQ2_XXS : IqFormat<IQ2_XXS> {
  static constexpr GgmlType kType = GgmlType::kIQ2_XXS;
  static constexpr int kFtype = 19;
  static constexpr GgmlType kNearest = GgmlType::kQ2_K;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    uint8_t qs[kBlockSize / 4];
  };
  static_assert(sizeof(Block) == 66);

  static NIBBLE_HD uint64_t levels(const Block& block, int group) {
    const uint8_t* part = block.qs + group / 4 * 8;
    const uint32_t signs = even_signs(load_word(part + 4) >> 7 * (group % 4) & 127u);
    return apply_signs(grid_point<Iq2XxsGrid>(part[group % 4]), signs);
  }
  static NIBBLE_HD float step(const Block& block, int group) {
    const uint32_t t = load_word(block.qs + group / 4 * 8 + 4) >> 28;
    return float16_to_float(block.d) * (0.5f + static_cast<float>(t)) * 0.25f;
  }
};

}  // namespace nibble
