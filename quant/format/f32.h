// F32: float32, stored as it is. A block is one weight.
#pragma once

#include "io/ggml_type.h"
#include "quant/format/float.h"

namespace nibble {

struct F32 : FloatFormat<F32> {
  static constexpr GgmlType kType = GgmlType::kF32;
  static constexpr int kFtype = 0;

  struct NIBBLE_PACKED Block {
    uint32_t bits;
  };
  static_assert(sizeof(Block) == 4);

  static NIBBLE_HD float value(const Block& block) { return float_of(block.bits); }
  static NIBBLE_HD Block nearest(float w) { return {bits_of(w)}; }
};

}  // namespace nibble
