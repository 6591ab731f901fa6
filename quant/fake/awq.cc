#include "quant/fake/awq.h"

#include <cmath>

#include "base/error.h"
#include "quant/fake/on_grid.h"

namespace nibble {
namespace {

constexpr int kExponents = 20;  // 0, 1/20, ..., 19/20: the paper's grid
// Of the inputs' mean size: a channel that slept through the calibration text must not have its
// next waking multiplied by thousands.
constexpr double kLeastSize = 1e-3;

/// Sizes of the maker's rows: root of their channels' mean energy. [rows]
torch::Tensor row_sizes(const torch::Tensor& energy, const torch::Tensor& maker_row, int64_t rows) {
  torch::Tensor sums = torch::zeros({rows}), counts = torch::zeros({rows});
  sums.index_add_(0, maker_row, energy);
  counts.index_add_(0, maker_row, torch::ones_like(energy));
  const torch::Tensor sizes = (sums / counts.clamp_min(1)).sqrt();
  return sizes.clamp_min(kLeastSize * sizes.mean().item<double>());
}

/// Powers of the sizes, the largest and the smallest equally far from 1.
torch::Tensor factors_of(const torch::Tensor& sizes, double exponent) {
  const torch::Tensor powers = sizes.pow(exponent);
  return powers / (powers.max() * powers.min()).sqrt();
}

double error_with(const std::vector<AwqMatrix>& matrices, const torch::Tensor& hessian,
                  const torch::Tensor& energy, const torch::Tensor& factors) {
  const torch::Tensor importance = (energy / factors.square()).contiguous();
  double error = 0;
  for (const auto& [format, weights] : matrices) {
    if (format->num_scales == 0) continue;
    const torch::Tensor multiplied = weights * factors;
    const torch::Tensor scales = chosen_scales(*format, multiplied, importance);
    error += output_error(weights, fake_quantized(*format, multiplied, scales) / factors, hessian);
  }
  return error;
}

}  // namespace

AwqFactors awq_factors(const std::vector<AwqMatrix>& matrices, const torch::Tensor& hessian,
                       const torch::Tensor& maker_row, int64_t rows) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor energy = hessian.diagonal().contiguous();
  check(at::isfinite(energy).all().item<bool>(), "the Hessian is not finite");
  const torch::Tensor sizes = row_sizes(energy, maker_row, rows);
  AwqFactors best{torch::ones({rows}), torch::ones_like(energy)};
  best.error = best.error_without = error_with(matrices, hessian, energy, best.of_channels);
  if (sizes.min().item<double>() <= 0) return best;  // nothing ever entered
  for (int i = 1; i < kExponents; ++i) {
    const double exponent = static_cast<double>(i) / kExponents;
    const torch::Tensor of_rows = factors_of(sizes, exponent);
    const torch::Tensor of_channels = of_rows.index_select(0, maker_row);
    const double error = error_with(matrices, hessian, energy, of_channels);
    if (error < best.error) best = {of_rows, of_channels, exponent, error, best.error_without};
  }
  return best;
}

}  // namespace nibble
