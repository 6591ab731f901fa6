// Where training starts with `initial: gptq`: each matrix of the model's blocks rounded by GPTQ
// (quant/fake/gptq.h) under the activations of training text.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/model.h"
#include "quant/fake/torch.h"
#include "quant/mix/plan.h"

namespace nibble {

/// The state that a FakeQuantizer starts from.
struct StartingPoint {
  torch::Tensor weights;  // masters, [rows, in] float32
  torch::Tensor scales;   // initial scales, [rows, blocks per row * num_scales] float32
};

/// By tensor name.
using StartingPoints = std::map<std::string, StartingPoint>;

/// The most bytes of Hessians that exist at once.
constexpr int64_t kMaxHessianBytes = int64_t{1} << 30;

/// Scales by search, each column's error weighed with its inputs' energy; codes by GPTQ. Matrices
/// are taken in the order of the forward pass, as many at a time as their Hessians have room for,
/// and later ones see what the earlier ones were rounded to: the model, on the CPU, is left with
/// rounded matrices. Tensors that enter no matmul of the blocks (embedding, output) or whose type
/// has no scales have no starting point. Shows progress. Throws Error naming the tensor.
StartingPoints gptq_start(Model& model, const Plan& plan, const std::vector<Batch>& batches,
                          int64_t max_hessian_bytes = kMaxHessianBytes);

}  // namespace nibble
