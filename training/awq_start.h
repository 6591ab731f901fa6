// Starting points, and PTQ, that look at how large the activations of a text are: AWQ
// (quant/fake/awq.h), and search weighted by an importance matrix.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model.h"
#include "quant/mix/plan.h"
#include "training/hessians.h"
#include "training/starting_point.h"

namespace nibble {

/// AWQ of each of the model's channel links. The factors go into the model's weights, norms
/// included, so that it computes what it did and a file of it is like any other; scales are then
/// found by search, each column's error weighed with its inputs' energy. Tensors that enter no
/// matmul of the blocks, or whose type has no scales, have no starting point. Shows progress.
/// Throws Error naming the tensor, and for an architecture without channel links.
StartingPoints awq_start(Model& model, const Plan& plan, const std::vector<Batch>& batches,
                         int64_t max_hessian_bytes = kMaxHessianBytes);

/// The same without factors: the model stays as it is.
StartingPoints imatrix_start(Model& model, const Plan& plan, const std::vector<Batch>& batches);

/// Divides the rows of what makes the link's channels by of_rows and multiplies the columns of what
/// takes them by of_channels (AwqFactors).
void move_factors(const ChannelLink& link, const torch::Tensor& of_rows,
                  const torch::Tensor& of_channels);

}  // namespace nibble
