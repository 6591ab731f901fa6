// IQ3_S: 3.44 bits, decoded only. w = d * (2 t + 1) * level, levels 1, 3, 5, ..., 15 and their
// negatives. Block of 256 weights, 110 bytes: float16 d, the low 8 bits of a 9-bit code for each 4
// weights; qh: the codes' high bits; a byte of signs for each 8 weights; a 4-bit t for each 32.
// Source: ggml/src/ggml-common.h (block_iq3_s), ggml/src/ggml-quants.c (dequantize_row_iq3_s).
#pragma once

#include "quant/format/iq.h"

namespace nibble {

struct IQ3_S : IqFormat<IQ3_S> {
  static constexpr GgmlType kType = GgmlType::kIQ3_S;
  static constexpr int kFtype = 26;
  static constexpr GgmlType kNearest = GgmlType::kQ3_K;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    uint8_t qs[kBlockSize / 4];
    uint8_t qh[kBlockSize / 32];
    uint8_t signs[kBlockSize / 8];
    uint8_t scales[kBlockSize / 64];
  };
  static_assert(sizeof(Block) == 110);

  static NIBBLE_HD uint64_t levels(const Block& block, int group) {
    const int high = block.qh[group / 4] >> group % 4 * 2;
    const int first = block.qs[2 * group] | (high & 1) << 8;
    const int second = block.qs[2 * group + 1] | (high & 2) << 7;
    return apply_signs(join_points(grid_point<Iq3SGrid>(first), grid_point<Iq3SGrid>(second)),
                       block.signs[group]);
  }
  static NIBBLE_HD float step(const Block& block, int group) {
    const int t = block.scales[group / 8] >> group / 4 % 2 * 4 & 15;
    return float16_to_float(block.d) * static_cast<float>(2 * t + 1);
  }
};

}  // namespace nibble
