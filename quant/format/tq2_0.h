// TQ2_0: 2 bits. w = d * (code - 1): the levels -d, 0, d, 2 d; d may be negative. Block of 256
// weights, 66 bytes: byte 32 (i / 128) + i mod 32 holds weight i in bits 2 (i mod 128 / 32) and the
// next; then float16 d. Made for ternary models: ggml itself never uses the level 2 d. Source:
// ggml/src/ggml-common.h (block_tq2_0), ggml/src/ggml-quants.c.
#pragma once

#include "io/ggml_type.h"
#include "quant/format/chunk_bytes.h"
#include "quant/format/ternary.h"
#include "quant/format/uniform.h"

namespace nibble {

struct TQ2_0 : StepFormat<TQ2_0> {
  static constexpr GgmlType kType = GgmlType::kTQ2_0;
  static constexpr int kFtype = 37;
  static constexpr int kBlockSize = 256;
  static constexpr int kGroupSize = 256;
  static constexpr int kQMin = -1;
  static constexpr int kQMax = 2;

  struct NIBBLE_PACKED Block {
    uint8_t qs[kBlockSize / 4];
    uint16_t d;
  };
  static_assert(sizeof(Block) == 66);

  static NIBBLE_HD int byte_of(int i) { return i / 128 * 32 + i % 32; }
  static NIBBLE_HD int shift_of(int i) { return i % 128 / 32 * 2; }

  static NIBBLE_HD int code(const Block& block, int i) {
    return (block.qs[byte_of(i)] >> shift_of(i) & 3) - 1;
  }
  static NIBBLE_HD void unpack(const Block& block, int first, int32_t* codes) {
    const ChunkBytes bytes = load_chunk(block.qs + byte_of(first));
    const int shift = shift_of(first);
    NIBBLE_EACH_LANE (k, kChunk) codes[k] = static_cast<int32_t>(bytes.from(k) >> shift & 3u) - 1;
  }
  static NIBBLE_HD void pack(const int8_t* codes, Block& block) {
    for (int j = 0; j < kBlockSize / 4; ++j) {
      const int8_t* first = codes + j / 32 * 128 + j % 32;
      block.qs[j] = static_cast<uint8_t>((first[0] + 1) | (first[32] + 1) << 2 |
                                         (first[64] + 1) << 4 | (first[96] + 1) << 6);
    }
  }

  /// ggml has no use for importance here.
  static NIBBLE_HD void encode_ggml(const float* weights, const float*, Block& block) {
    int8_t codes[kBlockSize];
    block.d = float_to_float16(ggml_ternary_choice<kBlockSize>(weights, codes));
    pack(codes, block);
  }
};

}  // namespace nibble
