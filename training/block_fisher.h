// What an error in a block's output costs: the Fisher information that the model's predictions have
// of it, the second derivative of the KL divergence by what leaves the block (sources: Li et al.
// 2021, "BRECQ", arXiv:2102.05426, which keeps its diagonal; Kim et al. 2025, "GuidedQuant",
// arXiv:2505.07004).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/model.h"

namespace nibble {

using LoadPart = std::function<std::unique_ptr<Model>(const ModelPart&)>;
/// fisher: [D, D] float32 on the CPU.
using FisherVisitor = std::function<void(int64_t block, const torch::Tensor& fisher)>;

/// Visits all blocks, the last one first. The mean over all positions of n^2 g g^T, where g is the
/// gradient that the negative log-likelihood of tokens drawn from the predictions has by the
/// position's state behind the block, and n the norm of that state, so that a relative error is
/// what counts; scaled to a mean eigenvalue of 1. One block is in memory at a time; the states
/// behind all of them, D float32 a position each, lie in `scratch_folder`. batches: at least one.
void visit_block_fisher(const LoadPart& load, const ModelShape& shape,
                        const std::vector<Batch>& batches, uint64_t seed,
                        const std::string& scratch_folder, const FisherVisitor& visit);

}  // namespace nibble
