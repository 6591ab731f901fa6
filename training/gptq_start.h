// Each matrix of the model's blocks rounded by GPTQ (quant/fake/gptq.h) under the activations of a
// text: where training starts with `initial: gptq`, and PTQ by itself.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model.h"
#include "quant/mix/plan.h"
#include "training/hessians.h"
#include "training/starting_point.h"

namespace nibble {

/// Scales by search, each column's error weighed with its inputs' energy; codes by GPTQ; scales
/// refitted. Matrices are taken in the order of the forward pass, as many at a time as their
/// Hessians have room for, and later ones see what the earlier ones were rounded to: the model, on
/// the CPU, is left with rounded matrices. Tensors that enter no matmul of the blocks (embedding,
/// output) or whose type has no scales have no starting point. Shows progress. Throws Error naming
/// the tensor.
StartingPoints gptq_start(Model& model, const Plan& plan, const std::vector<Batch>& batches,
                          int64_t max_hessian_bytes = kMaxHessianBytes);

}  // namespace nibble
