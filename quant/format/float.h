// Formats that store each weight by itself and have no scales: F32, F16, BF16. A format F derives
// from FloatFormat<F> and gives kType, kFtype, Block, value(block) and nearest(weight).
#pragma once

#include "quant/format/block.h"
#include "quant/format/estimator.h"

namespace nibble {

template <class F>
struct FloatFormat {
  static constexpr int kBlockSize = 1;
  static constexpr int kGroupSize = 1;
  static constexpr int kNumScales = 0;
  static constexpr bool kHasByteScales = false;

  template <class Block>
  static NIBBLE_HD void decode(const Block& block, float* out) {
    *out = F::value(block);
  }
  template <class Block>
  static NIBBLE_HD void scales_of(const Block&, float*) {}
  static NIBBLE_HD void snap(const float*, float*) {}
  template <class Block>
  static NIBBLE_HD void encode_with(const float* weights, const float*, Block& block) {
    block = F::nearest(*weights);
  }
  static NIBBLE_HD void fake_quantize(const float* weights, const float*, float* out) {
    *out = F::value(F::nearest(*weights));
  }
  static NIBBLE_HD void fake_quantize_backward(const float*, const float*, const float* grad_out,
                                               float* grad_weights, float*, Estimator) {
    *grad_weights = *grad_out;
  }
};

}  // namespace nibble
