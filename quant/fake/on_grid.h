// Tensors on a block format's grid by given scales, without the state of training.
#pragma once

#include <cstddef>
#include <vector>

#include "quant/fake/torch.h"
#include "quant/format/registry.h"

namespace nibble {

// Everywhere: weights [rows, in], or [experts, rows, in], float32, contiguous, on the CPU; scales
// [rows, blocks per row * num_scales] float32, of all experts' rows, as Format::scales_of() gives
// them, of a format that has scales.

/// The scales that an encoder chooses. importance: [in] float32, or [experts, in], or
/// undefined. Throws Error naming
/// the row for weights that the format cannot hold.
torch::Tensor chosen_scales(const Format& format, const torch::Tensor& weights,
                            const torch::Tensor& importance,
                            EncodeMethod method = EncodeMethod::kSearch);

/// [rows, in]: what encoded() decodes to, without the blocks.
torch::Tensor fake_quantized(const Format& format, const torch::Tensor& weights,
                             const torch::Tensor& scales);

/// The blocks of nearest codes.
std::vector<std::byte> encoded(const Format& format, const torch::Tensor& weights,
                               const torch::Tensor& scales);

/// (w - w^) H (w - w^)^T of each row: the squared error of its output, summed over the positions
/// that the Hessian [in, in] has seen. [rows] float64.
torch::Tensor row_errors(const torch::Tensor& weights, const torch::Tensor& rounded,
                         const torch::Tensor& hessian);
/// Of all rows together.
double output_error(const torch::Tensor& weights, const torch::Tensor& rounded,
                    const torch::Tensor& hessian);

}  // namespace nibble
