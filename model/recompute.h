// Activation checkpointing (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost",
// arXiv:1604.06174): a block keeps only its input, and the backward pass runs it once more.
// LibTorch has it in Python only.
#pragma once

#include <functional>

#include "quant/fake/torch.h"

namespace nibble {

using Block = std::function<torch::Tensor(const torch::Tensor&)>;

/// block(x), of which the backward pass keeps x alone. The block must own what it refers to and
/// give the same result when it is run again. Without gradients it is just block(x). Weights inside
/// must be leaves; their gradients are the same bits as without recomputing.
torch::Tensor recompute_in_backward(Block block, const torch::Tensor& x);

}  // namespace nibble
