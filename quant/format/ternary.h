// llama-quantize's choice for TQ1_0 and TQ2_0, to the byte. Source: ggml/src/ggml-quants.c
// (quantize_row_tq1_0_ref, quantize_row_tq2_0_ref).
#pragma once

#include "quant/format/ggml_choice.h"

namespace nibble {

/// Codes -1, 0 and 1 of kBlockSize weights for the largest magnitude as the step, which is
/// returned unrounded.
template <int kBlockSize>
NIBBLE_HD float ggml_ternary_choice(const float* x, int8_t* codes) {
  const float d = std::fabs(signed_extreme(x, kBlockSize));
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  for (int i = 0; i < kBlockSize; ++i)
    codes[i] = static_cast<int8_t>(round_half_away(x[i] * inverse));
  return d;
}

}  // namespace nibble
