// AWQ (Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and
// Acceleration"): the channels of a layer's input are divided by factors that its matrices'
// columns are multiplied by, so that columns of large inputs lose less when they are rounded. The
// factors are powers of the inputs' size; the exponent is searched for. Of an input's size the
// root mean square is taken, where the paper has the mean magnitude: the Hessian knows it.
#pragma once

#include <vector>

#include "quant/fake/torch.h"
#include "quant/format/registry.h"

namespace nibble {

/// A matrix of a layer and what it is rounded to.
struct AwqMatrix {
  const Format* format;   // one without scales loses next to nothing and counts for nothing
  torch::Tensor weights;  // [rows, in] float32, contiguous, on the CPU
};

struct AwqFactors {
  torch::Tensor of_rows;      // [maker rows] float32: what makes the input is divided by them
  torch::Tensor of_channels;  // [in] float32: columns are multiplied by them
  double exponent = 0;        // 0: all factors are 1
  /// tr((W - W^) H (W - W^)^T) of all matrices, W^ being what columns multiplied, rounded and
  /// divided again are: with the factors, and without.
  double error = 0, error_without = 0;
};

/// hessian [in, in] of the matrices' common input. maker_row [in] int64: of each channel, which of
/// the `rows` numbers of what makes the input (ChannelLink in model/model.h); channels of one row
/// have one factor. Rounds as `search` does, weighing columns with their inputs' energy.
AwqFactors awq_factors(const std::vector<AwqMatrix>& matrices, const torch::Tensor& hessian,
                       const torch::Tensor& maker_row, int64_t rows);

}  // namespace nibble
