// softmax_loss.h's loss and gradients of many positions in ATen's operations: what computes them on
// a GPU. On any device; the result is that of softmax_loss() but for the order of float32 sums.
#pragma once

#include "quant/fake/torch.h"
#include "training/softmax_loss.h"

namespace nibble {

/// student: [n, V] float32 logits, overwritten with dL/dlogits where weights.gradient. teacher: [n,
/// V] or undefined: no KL. targets: [n] int64, the next token or -1, or undefined: no
/// cross-entropy. Returns [2] float64 on their device: the sums over positions of KL and CE,
/// unweighted, nats.
torch::Tensor aten_softmax_loss(torch::Tensor& student, const torch::Tensor& teacher,
                                const torch::Tensor& targets, const PositionWeights& weights);

}  // namespace nibble
