// Q6_K: 6 bits. w = (d * t) * (code - 32), d float16 of the block, t int8 of each group of 16
// weights. Block of 256 weights, 210 bytes: low 4 bits, high 2 bits, t's, d. Within each half of
// 128 weights, quarter k (32 weights), weight l of it: low nibble (k < 2) or high nibble of byte
// 32 (k mod 2) + l of the half's 64 low bytes; bits 2 k, 2 k + 1 of byte l of its 32 high bytes.
// Source: ggml/src/ggml-common.h (block_q6_K), ggml/src/ggml-quants.c.
#pragma once

#include "io/ggml_type.h"
#include "quant/format/ggml_groups.h"
#include "quant/format/sub_scales.h"

namespace nibble {

struct Q6_K : SubScaleFormat<Q6_K> {
  static constexpr GgmlType kType = GgmlType::kQ6_K;
  static constexpr int kFtype = 18;
  static constexpr int kBlockSize = 256;
  static constexpr int kGroupSize = 16;
  static constexpr int kNumScales = 17;
  static constexpr int kQMin = -32;
  static constexpr int kQMax = 31;
  static constexpr int kTMin = -128;
  static constexpr int kTMax = 127;

  struct NIBBLE_PACKED Block {
    uint8_t ql[kBlockSize / 2];
    uint8_t qh[kBlockSize / 4];
    int8_t scales[kBlockSize / kGroupSize];
    uint16_t d;
  };
  static_assert(sizeof(Block) == 210);

  /// Where the bits of weight i lie.
  struct Place {
    int low_byte, low_shift, high_byte, high_shift;
  };
  static NIBBLE_HD Place place_of(int i) {
    const int half = i / 128, quarter = i % 128 / 32, l = i % 32;
    return {64 * half + 32 * (quarter % 2) + l, 4 * (quarter / 2), 32 * half + l, 2 * quarter};
  }

  static NIBBLE_HD int code(const Block& block, int i) {
    const Place place = place_of(i);
    const int low = block.ql[place.low_byte] >> place.low_shift & 15;
    return (low | (block.qh[place.high_byte] >> place.high_shift & 3) << 4) - 32;
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* codes) {
    const Place place = place_of(first);
    const uint8_t *low = block.ql + place.low_byte, *high = block.qh + place.high_byte;
    for (int k = 0; k < kChunk; ++k) {
      codes[k] = ((low[k] >> place.low_shift & 15) | (high[k] >> place.high_shift & 3) << 4) - 32;
    }
  }
  static NIBBLE_HD void pack(const int8_t* codes, Block& block) {
    for (int half = 0; half < 2; ++half) {
      const int8_t* q = codes + 128 * half;
      for (int l = 0; l < 64; ++l)
        block.ql[64 * half + l] = static_cast<uint8_t>((q[l] & 15) | (q[l + 64] & 15) << 4);
      for (int l = 0; l < 32; ++l) {
        const int high = (q[l] + 32) >> 4 | (q[l + 32] + 32) >> 4 << 2 |
                         (q[l + 64] + 32) >> 4 << 4 | (q[l + 96] + 32) >> 4 << 6;
        block.qh[32 * half + l] = static_cast<uint8_t>(high);
      }
    }
  }
  static NIBBLE_HD int sub_scale(const Block& block, int group) { return block.scales[group]; }
  static NIBBLE_HD void set_sub_scale(Block& block, int group, int t) {
    block.scales[group] = static_cast<int8_t>(t);
  }

  /// importance: as the imatrix has it, or nullptr: x^2 then.
  static NIBBLE_HD void encode_ggml(const float* weights, const float* importance, Block& block) {
    constexpr int kLanes = kBlockSize / kGroupSize;
    float x[kBlockSize], weighed[kBlockSize];
    GroupChoices<kGroupSize, kLanes> groups;
    to_lanes<kGroupSize, kLanes>(weights, x);
    if (importance) {
      to_lanes<kGroupSize, kLanes>(importance, weighed);
    } else {
      for (int i = 0; i < kBlockSize; ++i) weighed[i] = x[i] * x[i];
    }
    ggml_weighted_choices<kGroupSize, kLanes>(x, weighed, -kQMin, &groups);
    const float largest = signed_extreme(groups.d, kLanes);
    if (std::fabs(largest) < kGgmlGroupEpsilon) {
      memset(&block, 0, sizeof block);
      return;
    }
    const float inverse = -128.0f / largest;
    block.d = float_to_float16(1.0f / inverse);
    for (int j = 0; j < kLanes; ++j) {
      const int32_t t = ggml_nearest_int(inverse * groups.d[j]);
      block.scales[j] = static_cast<int8_t>(t < 127 ? t : 127);
    }
    int8_t codes[kBlockSize];
    ggml_block_codes<Q6_K>(weights, groups.codes, block, codes);
    pack(codes, block);
  }
};

}  // namespace nibble
