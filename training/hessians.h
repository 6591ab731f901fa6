// The activations of a text as what PTQ asks of them: for each matmul in a model's blocks, the sum
// over positions of x x^T.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/model.h"
#include "quant/fake/torch.h"

namespace nibble {

/// The most bytes of Hessians that exist at once.
constexpr int64_t kMaxHessianBytes = int64_t{1} << 30;

/// Takes the matrices that one input enters, of stacks one expert's, and its Hessian [in, in]
/// float32: zeros where no position reached that expert.
using HessianVisitor = std::function<void(const std::vector<Weight*>& weights, int64_t expert,
                                          const torch::Tensor& hessian)>;

/// Calls visit() for each matmul in the order of the forward pass. The model runs over all batches
/// for as many matmuls at a time as their Hessians have room for, at least one: later ones see what
/// visit() made of the weights of earlier ones. Shows progress under `title`, which errors begin
/// with too. Throws Error without batches and for a model that is not on the CPU.
void visit_hessians(Model& model, const std::vector<Batch>& batches, int64_t max_bytes,
                    const std::string& title, const HessianVisitor& visit);

}  // namespace nibble
