// GPTQ onto a block format's grid (Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization
// for Generative Pre-trained Transformers"): columns are rounded one after the other, and what the
// rounding does to the layer's output is made good for in the columns that are still to come.
// Scales are fixed beforehand ("static groups"), so columns can come in any order and the codes are
// those of the format's own encode_with(); afterwards they are refitted to these codes.
#pragma once

#include <cstddef>
#include <vector>

#include "quant/fake/on_grid.h"
#include "quant/fake/torch.h"
#include "quant/format/registry.h"

namespace nibble {

struct GptqOptions {
  double damping = 0.01;  // of the Hessian's mean diagonal, added to its diagonal
  bool by_energy =
      true;           // columns of the largest inputs first ("act order"), else from left to right
  bool refit = true;  // the scales, when all codes are chosen (quant/fake/scale_refit.h)
  int rounds = 2;     // of codes, then scales
};

struct GptqResult {
  /// [rows, in] float32: each weight as it was when its turn to be rounded came; where refitted
  /// scales would give that another code, what its code decodes to. Where training starts from:
  /// encoded() of it with `scales` gives the codes.
  torch::Tensor weights;
  torch::Tensor scales;   // [rows, blocks per row * num_scales] float32
  torch::Tensor rounded;  // [rows, in] float32: what the codes decode to
};

/// The sum over positions of x x^T, for one matrix' input.
class Hessian {
 public:
  explicit Hessian(int64_t width) : sum_(torch::zeros({width, width})) {}
  /// x [N, in] float32.
  void add(const torch::Tensor& x) { sum_.addmm_(x.t(), x); }
  /// [in, in] float32.
  const torch::Tensor& sum() const { return sum_; }

 private:
  torch::Tensor sum_;
};

/// weights [rows, in] and hessian [in, in], float32, contiguous, on the CPU; scales [rows, blocks
/// per row * num_scales]: as Format::scales_of() gives them. An input that is always 0 has weights
/// that do not matter: they are rounded as they are. No row's row_errors() is above that of the
/// nearest codes with the same scales: a row that would be is rounded so. Throws Error for a
/// Hessian that is not finite, or not positive definite however it is damped.
GptqResult gptq(const Format& format, const torch::Tensor& weights, const torch::Tensor& hessian,
                const torch::Tensor& scales, const GptqOptions& options = {});

}  // namespace nibble
