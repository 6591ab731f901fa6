// TQ1_0: ternary. w = d * (code - 1): the levels -d, 0, d; d may be negative. Block of 256 weights,
// 54 bytes: 48 bytes of five codes (byte m < 32: weights m, m + 32, ... m + 128; byte 32 + m, m <
// 16: weights 160 + m, 176 + m, ... 224 + m), 4 bytes of four (byte m: weights 240 + m, 244 + m,
// ... 252 + m), float16 d. A byte is 256 / 243 * n, rounded up, where n has the codes as its five
// digits to base 3, the first the highest; so code j is the integer part of 3 / 256 of the low 8
// bits of byte * 3^j. Source: ggml/src/ggml-common.h (block_tq1_0), ggml/src/ggml-quants.c.
#pragma once

#include "io/ggml_type.h"
#include "quant/format/chunk_bytes.h"
#include "quant/format/ternary.h"
#include "quant/format/uniform.h"

namespace nibble {

struct TQ1_0 : StepFormat<TQ1_0> {
  static constexpr GgmlType kType = GgmlType::kTQ1_0;
  static constexpr int kFtype = 36;
  static constexpr int kBlockSize = 256;
  static constexpr int kGroupSize = 256;
  static constexpr int kQMin = -1;
  static constexpr int kQMax = 1;
  /// The first weights of the second 16 bytes of `qs` and of `qh`.
  static constexpr int kSecond = 160, kThird = 240;

  struct NIBBLE_PACKED Block {
    uint8_t qs[48];
    uint8_t qh[4];
    uint16_t d;
  };
  static_assert(sizeof(Block) == 54);

  /// q of digit j (0 to 4) of a byte.
  static NIBBLE_HD int32_t digit(uint32_t byte, int j) {
    const uint32_t power = (j & 1 ? 3u : 1u) * (j & 2 ? 9u : 1u) * (j & 4 ? 81u : 1u);
    return static_cast<int32_t>((byte * power & 255u) * 3u >> 8) - 1;
  }
  static NIBBLE_HD int code(const Block& block, int i) {
    if (i < kSecond) return digit(block.qs[i % 32], i / 32);
    if (i < kThird) return digit(block.qs[32 + i % 16], (i - kSecond) / 16);
    return digit(block.qh[i % 4], (i - kThird) / 4);
  }
  static NIBBLE_HD void unpack_digits(const uint8_t* bytes, int j, int32_t* codes) {
    const ChunkBytes chunk = load_chunk(bytes);
    NIBBLE_EACH_LANE (k, kChunk) codes[k] = digit(chunk.from(k), j);
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* codes) {
    if (first < kSecond) {
      unpack_digits(block.qs + first % 32, first / 32, codes);
    } else if (first < kThird) {
      unpack_digits(block.qs + 32, (first - kSecond) / 16, codes);
    } else {
      const uint32_t word = load_word(block.qh);
      NIBBLE_EACH_LANE (k, kChunk) codes[k] = digit(word >> 8 * (k & 3), k >> 2);
    }
  }

  /// The byte of `count` codes, `stride` apart.
  static NIBBLE_HD uint8_t byte_of(const int8_t* codes, int stride, int count) {
    int n = 0;
    for (int j = 0; j < 5; ++j) n = 3 * n + (j < count ? codes[j * stride] + 1 : 0);
    return static_cast<uint8_t>((n * 256 + 242) / 243);
  }
  static NIBBLE_HD void pack(const int8_t* codes, Block& block) {
    for (int m = 0; m < 32; ++m) block.qs[m] = byte_of(codes + m, 32, 5);
    for (int m = 0; m < 16; ++m) block.qs[32 + m] = byte_of(codes + kSecond + m, 16, 5);
    for (int m = 0; m < 4; ++m) block.qh[m] = byte_of(codes + kThird + m, 4, 4);
  }

  /// ggml has no use for importance here.
  static NIBBLE_HD void encode_ggml(const float* weights, const float*, Block& block) {
    int8_t codes[kBlockSize];
    block.d = float_to_float16(ggml_ternary_choice<kBlockSize>(weights, codes));
    pack(codes, block);
  }
};

}  // namespace nibble
