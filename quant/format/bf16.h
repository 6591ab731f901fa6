// BF16: the upper half of a float32, to nearest, ties to even. A block is one weight.
#pragma once

#include "io/ggml_type.h"
#include "quant/format/float.h"

namespace nibble {

struct BF16 : FloatFormat<BF16> {
  static constexpr GgmlType kType = GgmlType::kBF16;
  static constexpr int kFtype = 32;

  struct NIBBLE_PACKED Block {
    uint16_t bits;
  };
  static_assert(sizeof(Block) == 2);

  static NIBBLE_HD float value(const Block& block) { return bfloat16_to_float(block.bits); }
  static NIBBLE_HD Block nearest(float w) { return {float_to_bfloat16(w)}; }
};

}  // namespace nibble
