// The loops between the matmuls, one pass each, for float32 rows on the CPU. No torch: pointers and
// sizes. All are threaded over rows or elements.
#pragma once

#include <cstdint>

namespace nibble {

/// y = x / sqrt(mean(x^2) + epsilon) * weight, row by row; x, y: [rows, width]. inverse_rms:
/// [rows], for the backward pass.
void rms_norm_forward(const float* x, const float* weight, float epsilon, int64_t rows,
                      int64_t width, float* y, float* inverse_rms);
/// grad_x: [rows, width]. grad_weight: [width], added to; nullptr where not wanted.
void rms_norm_backward(const float* x, const float* weight, const float* inverse_rms,
                       const float* grad_y, int64_t rows, int64_t width, float* grad_x,
                       float* grad_weight);

/// y = gate * sigmoid(gate) * up, element by element.
void swiglu_forward(const float* gate, const float* up, int64_t count, float* y);
void swiglu_backward(const float* gate, const float* up, const float* grad_y, int64_t count,
                     float* grad_gate, float* grad_up);

}  // namespace nibble
