// The layers that architectures are built from, as differentiable functions of activations and
// weights. Activations are float32 [N, width], where N runs over all positions of a batch,
// documents one after the other.
//
// Gradients of weights that are leaves are added to weight.grad() by the backward pass itself, in
// place: no second tensor of a weight's size exists, and micro-batches and tied weights accumulate
// for free. torch::autograd::grad() and gradient hooks therefore do not see them, but for a leaf's
// post-accumulate-grad hook, which runs after each addition and may let go of the gradient. A
// weight that is itself computed (not a leaf) gets its gradient the usual way.
#pragma once

#include <cstdint>
#include <vector>

#include "quant/fake/torch.h"

namespace nibble {

/// Runs the post-accumulate-grad hook of a leaf that wants gradients, where it has one: for whoever
/// has added to its grad() in place.
void run_gradient_hook(const torch::Tensor& leaf);

/// x [N, in] by each of `weights` [out_i, in]: {[N, out_i]}. With dtype bfloat16 the matmuls run in
/// it.
std::vector<torch::Tensor> project(const torch::Tensor& x,
                                   const std::vector<torch::Tensor>& weights, torch::Dtype dtype);
/// The same for one weight, and an undefined or [out] bias.
torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                     torch::Dtype dtype);

/// Rows `tokens` [N] int64 of `table` [V, D]: [N, D].
torch::Tensor embed_tokens(const torch::Tensor& table, const torch::Tensor& tokens);

/// x / sqrt(mean(x^2) + epsilon) * weight.
torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double epsilon);

/// silu(gate) * up.
torch::Tensor swiglu(const torch::Tensor& gate, const torch::Tensor& up);

/// gelu(gate) * up, gelu with tanh (Hendrycks and Gimpel, arXiv:1606.08415). In ATen's operations.
torch::Tensor geglu(const torch::Tensor& gate, const torch::Tensor& up);

/// gate sigmoid(1.702 gate) (up + 1) of a gate of 7 at most and an up of -7 to 7 (gpt-oss:
/// arXiv:2508.10925). Keeps gate and up.
torch::Tensor clamped_swiglu(const torch::Tensor& gate, const torch::Tensor& up);

/// cap tanh(x / cap); x where cap is 0.
torch::Tensor soft_cap(const torch::Tensor& x, double cap);

// rms_norm and swiglu in ATen's operations: what they are on a GPU, where model/kernels.h's loops
// do not run. On any device.

torch::Tensor aten_rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double epsilon);
torch::Tensor aten_swiglu(const torch::Tensor& gate, const torch::Tensor& up);

}  // namespace nibble
