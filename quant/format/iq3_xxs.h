// IQ3_XXS: 3.06 bits, decoded only. w = d * (t + 1/2) / 2 * level, levels 4, 12, 20, ..., 52, 62
// and their negatives. Block of 256 weights, 98 bytes: float16 d, an 8-bit code for each 4 weights,
// then a 32-bit word for each 32: 7 bits of signs for each 8 weights, the lowest first, and the
// 4-bit t.
// Source: ggml/src/ggml-common.h (block_iq3_xxs), ggml/src/ggml-quants.c (dequantize_row_iq3_xxs).
#pragma once

#include "quant/format/iq.h"

namespace nibble {

struct IQ3_XXS : IqFormat<IQ3_XXS> {
  static constexpr GgmlType kType = GgmlType::kIQ3_XXS;
  static constexpr int kFtype = 23;
  static constexpr GgmlType kNearest = GgmlType::kQ3_K;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    uint8_t qs[kBlockSize / 4];
    uint8_t scales_and_signs[kBlockSize / 8];
  };
  static_assert(sizeof(Block) == 98);

  static NIBBLE_HD uint64_t levels(const Block& block, int group) {
    const uint32_t word = load_word(block.scales_and_signs + group / 4 * 4);
    const uint64_t points = join_points(grid_point<Iq3XxsGrid>(block.qs[2 * group]),
                                        grid_point<Iq3XxsGrid>(block.qs[2 * group + 1]));
    return apply_signs(points, even_signs(word >> 7 * (group % 4) & 127u));
  }
  static NIBBLE_HD float step(const Block& block, int group) {
    const uint32_t t = load_word(block.scales_and_signs + group / 4 * 4) >> 28;
    return float16_to_float(block.d) * (0.5f + static_cast<float>(t)) * 0.5f;
  }
};

}  // namespace nibble
