// Weights that are made whenever something computes with them and are gone afterwards: W^ of stored
// blocks whose scales train, and a teacher's matrices, which lie in its file. To autograd they are
// leaves like others, with sizes, gradients and hooks.
#pragma once

#include <cstdint>
#include <functional>

#include "quant/fake/torch.h"

namespace nibble {

/// Writes rows [first, first + out.size(0)) of a weight into `out`: [n, row length] float32,
/// contiguous, on the CPU. Gives the same values for as long as a graph that used them lives.
using MakeRows = std::function<void(int64_t first, torch::Tensor& out)>;

/// A float32 tensor of `sizes` on `device` that takes no memory. Who does not ask values_of() finds
/// NaN everywhere.
torch::Tensor made_weight(at::IntArrayRef sizes, torch::Device device, MakeRows make);
bool is_made(const torch::Tensor& weight);

/// weight.to(dtype), of any weight; without a gradient where it is made.
torch::Tensor values_of(const torch::Tensor& weight, torch::Dtype dtype = torch::kFloat32);
/// The same of stack.select(0, index): one matrix [out, in] of a stack [experts, out, in].
torch::Tensor matrix_of(const torch::Tensor& stack, int64_t index,
                        torch::Dtype dtype = torch::kFloat32);
/// Rows `rows` [N] int64 of any weight [V, D]: [N, D].
torch::Tensor rows_of(const torch::Tensor& weight, const torch::Tensor& rows);

}  // namespace nibble
