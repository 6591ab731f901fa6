// Types by a budget of bytes instead of by a name: each tensor gets the type with which the sum of
// the tensors' measured KLDs is least. That KLDs of single tensors add up is an approximation (it
// holds to second order where the tensors' errors do not correlate); what a plan really costs,
// `nibble compare` measures.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "quant/mix/plan.h"
#include "quant/mix/sensitivity.h"

namespace nibble {

/// One way to store a tensor.
struct TypeCost {
  GgmlType type = GgmlType::kF32;
  int64_t bytes = 0;
  double kld = 0;
};

/// For each tensor (a list of at least one way) the index of the way it gets: the summed bytes are
/// at most `bytes`, the summed KLD is as low as a greedy walk along the lower convex hulls finds
/// (optimal but for the last step: Everett 1963, "Generalized Lagrange Multiplier Method"), with
/// what is left over spent on the best single changes. Throws Error when even the smallest ways
/// together need more.
std::vector<size_t> choose_within(const std::vector<std::vector<TypeCost>>& tensors, int64_t bytes);

/// A plan of at most `bytes` of tensor data. Tensors that were not measured are kept or become
/// Q8_0 by llama-quantize's rules. options: what is asked for besides types. Throws Error for a
/// sensitivity of another model (tensor names and shapes), for too small a budget, naming the least
/// that is possible, and, unless the options allow it, for a tensor that is quantized already.
Plan plan_within(const GgufFile& source, const Sensitivity& sensitivity, int64_t bytes,
                 const PlanOptions& options = {});

/// The plan's choices as llama-quantize's --tensor-type-file takes them: NAME=TYPE, one a line,
/// NAME a regular expression that matches one tensor. Those that keep their type are left out.
std::string tensor_type_file(const Plan& plan);

}  // namespace nibble
