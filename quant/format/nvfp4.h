// NVFP4: 4-bit floats, scaled by 8-bit ones. w = d * level, levels 0, 1, 2, 3, 4, 6, 8, 12 and
// their negatives (fp4.h); d of each group of 16 weights is half an unsigned E4M3 number, from
// 2^-10 to 224, or 0. Block of 64 weights, 36 bytes: four d's, then 8 bytes a group, byte j with
// weight j in its low and weight j + 8 in its high nibble. Larger weights than 2688 are clamped, as
// ggml does. Source: ggml/src/ggml-common.h (block_nvfp4), ggml/src/ggml-quants.c,
// ggml/src/ggml-impl.h (ggml_ue4m3_to_fp32, ggml_fp32_to_ue4m3).
#pragma once

#include "io/ggml_type.h"
#include "quant/format/chunk_bytes.h"
#include "quant/format/fp4.h"
#include "quant/format/lanes.h"

namespace nibble {

struct NVFP4 : Fp4Format<NVFP4> {
  static constexpr GgmlType kType = GgmlType::kNVFP4;
  static constexpr int kFtype = 39;
  static constexpr int kBlockSize = 64;
  static constexpr int kGroupSize = 16;
  static constexpr int kNumScales = 4;
  static constexpr float kLeastNormal = 0x1p-7f;

  struct NIBBLE_PACKED Block {
    uint8_t d[kNumScales];
    uint8_t qs[kBlockSize / 2];
  };
  static_assert(sizeof(Block) == 36);

  static NIBBLE_HD int code(const Block& block, int i) {
    const int byte = block.qs[i / 16 * 8 + i % 8];
    return fp4_level(static_cast<uint32_t>(byte >> i % 16 / 8 * 4 & 15));
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* levels) {
    const uint8_t* bytes = block.qs + first / 2;
    const uint32_t first_word = load_word(bytes), second_word = load_word(bytes + 4);
    NIBBLE_EACH_LANE (k, kChunk) {
      const uint32_t word = k & 4 ? second_word : first_word;
      levels[k] = fp4_level(word >> (8 * (k & 3) + 4 * (k >> 3)) & 15);
    }
  }
  static NIBBLE_HD void pack(const int8_t* levels, Block& block) {
    for (int j = 0; j < kBlockSize / 2; ++j) {
      const int8_t* low = levels + j / 8 * 16 + j % 8;
      block.qs[j] = static_cast<uint8_t>(fp4_code(low[0]) | fp4_code(low[8]) << 4);
    }
  }

  static NIBBLE_HD const uint8_t* scale_bytes(const Block& block) { return block.d; }
  static NIBBLE_HD uint8_t* scale_bytes(Block& block) { return block.d; }
  /// 4 bits of exponent and 3 of fraction; the highest bit means nothing. 0x7f, a NaN elsewhere, is
  /// 0.
  static NIBBLE_HD float scale_of_byte(int byte) {
    const int exponent = byte >> 3 & 15, fraction = byte & 7;
    if (byte == 0x7f) return 0.0f;
    if (exponent == 0) return static_cast<float>(fraction) * 0x1p-10f;
    return float_of(static_cast<uint32_t>(exponent + 119) << 23 | static_cast<uint32_t>(fraction)
                                                                      << 20);
  }
  static NIBBLE_HD uint8_t byte_of_scale(float d) {
    if (d < kLeastNormal) return static_cast<uint8_t>(round_to_int(d * 0x1p10f));
    return static_cast<uint8_t>((bits_of(d) >> 20) - (119u << 3));
  }
  /// Exactly 0 stays 0.
  static NIBBLE_HD float nearest_scale(float d) {
    const float magnitude = std::fabs(d);
    if (magnitude < kLeastNormal) {
      const float rounded = round_to_even(magnitude * 0x1p10f) * 0x1p-10f;
      return rounded == 0.0f && magnitude > 0.0f ? 0x1p-10f : rounded;
    }
    const uint32_t bits = bits_of(clamp_to(magnitude, 0.0f, 224.0f));
    return float_of((bits + 0x0007ffffu + (bits >> 20 & 1u)) & 0xfff00000u);
  }
  static NIBBLE_HD float range_scale(float amax) {
    const float d = nearest_scale(amax / 12.0f);
    // Of the least scales the nearest may be far too small. 14: half-way to a level beyond the
    // last.
    return amax > 14.0f * d && d < 224.0f ? scale_of_byte(byte_of_scale(d) + 1) : d;
  }
  /// ggml rounds halves up, and from 248 on makes everything 448.
  static NIBBLE_HD uint8_t ggml_byte(float amax) {
    const float scale = amax / 6.0f < 448.0f ? amax / 6.0f : 448.0f;
    const auto bits = static_cast<int>(bits_of(scale) >> 19);  // fraction's lowest: that to round
    const int exponent = (bits >> 4) - 120;
    if (exponent <= 0) {
      const auto fraction = static_cast<int>(scale * 512.0f + 0.5f);
      return static_cast<uint8_t>(fraction < 7 ? fraction : 7);
    }
    const int byte = 8 * exponent + (bits >> 1 & 7) + (bits & 1);
    return static_cast<uint8_t>(byte < 0x78 ? byte : 0x7e);
  }
};

}  // namespace nibble
