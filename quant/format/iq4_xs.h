// IQ4_XS: 4 bits. w = (d * t) * level, sixteen levels from -127 to 113 (iq4.h); d float16 of the
// block, t from -32 to 31 for each group of 32 weights. Block of 256 weights, 136 bytes: d, t + 32
// (its high 2 bits in bits 2 j, 2 j + 1 of a 16-bit word, its low 4 in nibble j of 4 bytes), then
// 16 bytes of nibbles per group, as in IQ4_NL. Source: ggml/src/ggml-common.h (block_iq4_xs),
// ggml/src/ggml-quants.c.
#pragma once

#include "io/ggml_type.h"
#include "quant/format/iq4.h"
#include "quant/format/sub_scales.h"

namespace nibble {

struct IQ4_XS : SubScaleFormat<IQ4_XS> {
  static constexpr GgmlType kType = GgmlType::kIQ4_XS;
  static constexpr int kFtype = 30;
  static constexpr int kBlockSize = 256;
  static constexpr int kGroupSize = kIq4Group;
  static constexpr int kNumScales = 9;
  static constexpr int kQMin = -127;
  static constexpr int kQMax = 113;
  static constexpr int kTMin = -32;
  static constexpr int kTMax = 31;
  using Levels = Iq4Levels;

  struct NIBBLE_PACKED Block {
    uint16_t d;
    uint16_t scales_h;
    uint8_t scales_l[kBlockSize / 64];
    uint8_t qs[kBlockSize / 2];
  };
  static_assert(sizeof(Block) == 136);

  static NIBBLE_HD int code(const Block& block, int i) {
    const uint8_t* qs = block.qs + i / kIq4Group * (kIq4Group / 2);
    return iq4_level(static_cast<uint32_t>(nibble_of(qs, i % kIq4Group)));
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* levels) {
    unpack_iq4(block.qs + first / kIq4Group * (kIq4Group / 2), first % kIq4Group, levels);
  }
  static NIBBLE_HD void pack(const int8_t* levels, Block& block) {
    for (int j = 0; j < kBlockSize / kIq4Group; ++j)
      pack_iq4(levels + j * kIq4Group, block.qs + j * (kIq4Group / 2));
  }
  static NIBBLE_HD int sub_scale(const Block& block, int group) {
    const int low = block.scales_l[group / 2] >> group % 2 * 4 & 15;
    return (low | (block.scales_h >> 2 * group & 3) << 4) - 32;
  }
  static NIBBLE_HD void set_sub_scale(Block& block, int group, int t) {
    const int stored = t + 32, low_shift = group % 2 * 4, high_shift = 2 * group;
    uint8_t& low = block.scales_l[group / 2];
    low = static_cast<uint8_t>((low & ~(15 << low_shift)) | (stored & 15) << low_shift);
    block.scales_h = static_cast<uint16_t>((block.scales_h & ~(3 << high_shift)) |
                                           (stored >> 4 & 3) << high_shift);
  }

  /// importance: as the imatrix has it, or nullptr. ggml chooses levels by the unrounded d.
  static NIBBLE_HD void encode_ggml(const float* weights, const float* importance, Block& block) {
    constexpr int kGroups = kBlockSize / kGroupSize;
    const float sigma2 = 2.0f * mean_square(weights, kBlockSize);
    float steps[kGroups];
    for (int j = 0; j < kGroups; ++j) {
      const float* group = weights + j * kGroupSize;
      float weighed[kGroupSize];
      ggml_iq4_weights(group, importance ? importance + j * kGroupSize : nullptr, sigma2, weighed);
      steps[j] = ggml_iq4_step(group, weighed);
    }
    const float d = -signed_extreme(steps, kGroups) / 32.0f;
    block.d = float_to_float16(d);
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    int8_t levels[kBlockSize];
    for (int j = 0; j < kGroups; ++j) {
      const int32_t t = ggml_code(inverse * steps[j], kTMin, kTMax);
      set_sub_scale(block, j, t);
      ggml_iq4_levels(weights + j * kGroupSize, d * static_cast<float>(t), levels + j * kGroupSize);
    }
    pack(levels, block);
  }
};

}  // namespace nibble
