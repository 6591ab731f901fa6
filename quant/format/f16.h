// F16: IEEE half precision, to nearest, ties to even; beyond 65504 it overflows to infinity. A
// block is one weight.
#pragma once

#include "io/ggml_type.h"
#include "quant/format/float.h"

namespace nibble {

struct F16 : FloatFormat<F16> {
  static constexpr GgmlType kType = GgmlType::kF16;
  static constexpr int kFtype = 1;

  struct NIBBLE_PACKED Block {
    uint16_t bits;
  };
  static_assert(sizeof(Block) == 2);

  static NIBBLE_HD float value(const Block& block) { return float16_to_float(block.bits); }
  static NIBBLE_HD Block nearest(float w) { return {float_to_float16(w)}; }
};

}  // namespace nibble
