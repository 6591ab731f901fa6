// MXFP4: 4-bit floats, scaled by powers of two. w = d * level, levels 0, 1, 2, 3, 4, 6, 8, 12 and
// their negatives (fp4.h), d = 2^(e - 128). Block of 32 weights, 17 bytes: e, then byte j with
// weight j in its low and weight j + 16 in its high nibble. e = 255, a NaN in other programs,
// decodes like any other. Source: ggml/src/ggml-common.h (block_mxfp4), ggml/src/ggml-quants.c,
// ggml/src/ggml-impl.h (ggml_e8m0_to_fp32_half).
#pragma once

#include "io/ggml_type.h"
#include "quant/format/chunk_bytes.h"
#include "quant/format/fp4.h"
#include "quant/format/lanes.h"
#include "quant/format/packing.h"

namespace nibble {

struct MXFP4 : Fp4Format<MXFP4> {
  static constexpr GgmlType kType = GgmlType::kMXFP4;
  static constexpr int kFtype = 38;
  static constexpr int kBlockSize = 32;
  static constexpr int kGroupSize = 32;
  static constexpr int kNumScales = 1;

  struct NIBBLE_PACKED Block {
    uint8_t e;
    uint8_t qs[kBlockSize / 2];
  };
  static_assert(sizeof(Block) == 17);

  static NIBBLE_HD int code(const Block& block, int i) {
    return fp4_level(static_cast<uint32_t>(nibble_of(block.qs, i)));
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* levels) {
    const ChunkBytes bytes = load_chunk(block.qs);
    NIBBLE_EACH_LANE (k, kChunk) levels[k] = fp4_level(bytes.from(k) >> first / 4 & 15);
  }
  static NIBBLE_HD void pack(const int8_t* levels, Block& block) {
    for (int j = 0; j < kBlockSize / 2; ++j)
      block.qs[j] = static_cast<uint8_t>(fp4_code(levels[j]) | fp4_code(levels[j + 16]) << 4);
  }

  static NIBBLE_HD const uint8_t* scale_bytes(const Block& block) { return &block.e; }
  static NIBBLE_HD uint8_t* scale_bytes(Block& block) { return &block.e; }
  /// The two least are subnormal.
  static NIBBLE_HD float scale_of_byte(int e) {
    return float_of(e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23);
  }
  static NIBBLE_HD uint8_t byte_of_scale(float d) {
    const uint32_t bits = bits_of(d) & 0x7fffffffu;
    return static_cast<uint8_t>(bits >> 23 ? (bits >> 23) + 1 : bits >> 22);
  }
  /// From 2^-126 to 2^126, where the inverse is a normal number and the byte no NaN elsewhere.
  static NIBBLE_HD float power_of_two(uint32_t exponent_field) {
    return float_of((exponent_field < 1 ? 1 : exponent_field > 253 ? 253 : exponent_field) << 23);
  }
  static NIBBLE_HD float nearest_scale(float d) {
    return power_of_two(((bits_of(d) & 0x7fffffffu) + 0x00400000u) >> 23);
  }
  /// The least power of two of which 14, half-way from the last level to one beyond, reaches amax.
  static NIBBLE_HD float range_scale(float amax) {
    return power_of_two((bits_of(amax / 14.0f) + 0x007fffffu) >> 23);
  }
  /// floor(log2f(amax)) - 2, biased. Below 2^-125 ggml converts a negative number to a byte, which
  /// C leaves undefined: 0 here.
  static NIBBLE_HD uint8_t ggml_byte(float amax) {
    const int e = floor_of_log2(amax) + 125;
    return static_cast<uint8_t>(e > 0 ? e : 0);
  }
  /// floorf(log2f(x)) of a positive x. A logarithm that is nearer to an integer than float32 tells
  /// apart is that integer, so a few numbers below each power of two count as it.
  static NIBBLE_HD int floor_of_log2(float x) {
    const int exponent = static_cast<int>(bits_of(x) >> 23) - 127;
    // x is `below` units of 2^-24 short of the next power; its logarithm, 1 / ln 2 times as many.
    const auto below = static_cast<float>(0x00800000u - (bits_of(x) & 0x007fffffu));
    const int integer = exponent + 1, magnitude = integer > 0 ? integer - 1 : -integer;
    float unit = 0.0f;  // half a unit of log2f(x)'s last place, in units of 2^-24
    for (int m = magnitude; m > 0; m >>= 1) unit = unit > 0.0f ? 2.0f * unit : 1.0f;
    return below * 1.44269504f < unit ? integer : exponent;
  }
};

}  // namespace nibble
