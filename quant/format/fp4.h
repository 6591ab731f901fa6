// What MXFP4 and NVFP4 share: 4-bit floats (E2M1) with a scale of 8 bits per group of weights, and
// llama-quantize's choice of their codes. w = d * level; d is half the scale that the byte stands
// for and the levels are twice E2M1's numbers, so that they are integers. A format F derives from
// Fp4Format<F> and, besides what Uniform wants, gives kNumScales, its Block with scale bytes,
//   scale_bytes(block) -> pointer to them, scale_of_byte(byte) -> d, byte_of_scale(d),
//   nearest_scale(d) -> the nearest that training may use, range_scale(amax) -> the scale that
//   leaves weights up to amax within half a step, and ggml_byte(amax).
// Such scales are too far apart to train: they follow from the weights in every step. Source: OCP
// Microscaling Formats specification 1.0; ggml/src/ggml-common.h (kvalues_fp4),
// ggml/src/ggml-quants.c (best_index_mxfp4).
#pragma once

#include "quant/format/codebook.h"
#include "quant/format/ggml_choice.h"

namespace nibble {

using Fp4Levels = Codebook<Ties::kTowardZero, -12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12>;

/// Bit 3 is the sign; 8 is another 0.
NIBBLE_HD int32_t fp4_level(uint32_t code) {
  return table_value<0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12>(code);
}
NIBBLE_HD int fp4_code(int level) {
  const int index = Fp4Levels::index_of(level);  // of 0: 7
  return index >= 7 ? index - 7 : 15 - index;
}

/// ggml's level: the first of least |d * level - x|, each rounded to float; so one of a weight that
/// dwarfs all of them is 0.
NIBBLE_HD int8_t ggml_fp4_level(float x, float d) {
  const float magnitude = std::fabs(x);
  float least = magnitude;
  int32_t best = 0;
  for (uint32_t code = 1; code < 8; ++code) {
    const int32_t level = fp4_level(code);
    const float error = std::fabs(static_cast<float>(level) * d - magnitude);
    best = error < least ? level : best;
    least = error < least ? error : least;
  }
  return static_cast<int8_t>(x < 0.0f ? -best : best);
}

template <class F>
struct Fp4Format : Uniform<F> {
  using Levels = Fp4Levels;
  static constexpr int kQMin = -12;
  static constexpr int kQMax = 12;
  static constexpr bool kHasOffset = false;
  static constexpr bool kHasByteScales = true;

  template <class Block>
  static NIBBLE_HD void scales_of(const Block& block, float* scales) {
    for (int j = 0; j < F::kNumScales; ++j) scales[j] = F::scale_of_byte(F::scale_bytes(block)[j]);
  }
  template <class Block>
  static NIBBLE_HD void set_scales(Block& block, const float* scales) {
    for (int j = 0; j < F::kNumScales; ++j) F::scale_bytes(block)[j] = F::byte_of_scale(scales[j]);
  }
  static NIBBLE_HD void snap(const float* scales, float* snapped) {
    for (int j = 0; j < F::kNumScales; ++j) snapped[j] = F::nearest_scale(scales[j]);
  }
  static NIBBLE_HD Grid grid(const float* snapped, int group) {
    const float step = snapped[group];
    // The inverse of MXFP4's least scale, 2^-128, is no float.
    const float least = step > 0.0f ? 0x1p-127f : 0.0f;
    return {step, inverse_of(step > least ? step : least), 0.0f};
  }
  static NIBBLE_HD void scale_gradients(const float*, const float* step_sums, const float*,
                                        float* grad_scales) {
    for (int j = 0; j < F::kNumScales; ++j) grad_scales[j] = step_sums[j];
  }

  /// ggml has no use for importance here.
  template <class Block>
  static NIBBLE_HD void encode_ggml(const float* weights, const float*, Block& block) {
    int8_t levels[F::kBlockSize];
    for (int j = 0; j < F::kNumScales; ++j) {
      const float* group = weights + j * F::kGroupSize;
      const uint8_t byte = F::ggml_byte(std::fabs(signed_extreme(group, F::kGroupSize)));
      F::scale_bytes(block)[j] = byte;
      for (int i = 0; i < F::kGroupSize; ++i)
        levels[j * F::kGroupSize + i] = ggml_fp4_level(group[i], F::scale_of_byte(byte));
    }
    F::pack(levels, block);
  }
};

}  // namespace nibble
