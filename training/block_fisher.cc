#include "training/block_fisher.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

#include "base/error.h"
#include "base/progress.h"
#include "training/block_states.h"

namespace nibble {
namespace {

// Positions whose logits are in memory at a time.
constexpr int64_t kChunkPositions = 256;

/// What leaves each block, at block + 1, and what enters the first, at 0.
void keep_states(const LoadPart& load, const ModelShape& shape, const std::vector<Batch>& batches,
                 BlockStates& states, Progress& progress) {
  const torch::NoGradGuard no_grad;
  const std::unique_ptr<Model> ends = load({0, 0, true});
  for (size_t i = 0; i < batches.size(); ++i) states.put(i, ends->embed(batches[i]));
  for (int64_t block = 0; block < shape.num_layers; ++block) {
    const std::unique_ptr<Model> part = load({block, 1, false});
    for (size_t i = 0; i < batches.size(); ++i)
      states.put(i, part->blocks(states.get(i, block).to(part->device()), batches[i]), block + 1);
    progress.update(block + 1);
  }
}

/// One token for each position of logits [N, V], drawn from their softmax: where a uniform number
/// falls among the sums of the likelihoods so far.
torch::Tensor draw(const torch::Tensor& logits, at::Generator& random) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor sums = at::softmax(logits.cpu(), -1).cumsum(-1);
  const torch::Tensor total = sums.slice(1, sums.size(1) - 1);
  const torch::Tensor falls = total * at::rand({logits.size(0), 1}, random, sums.options());
  const torch::Tensor token = at::searchsorted(sums, falls, /*out_int32=*/false, /*right=*/true);
  return token.clamp_max(logits.size(1) - 1).squeeze(1).to(logits.device());
}

/// Of the tokens drawn, by what leaves the last block, [N, D].
torch::Tensor gradients_behind(Model& ends, const torch::Tensor& states, at::Generator& random) {
  const torch::Tensor x = states.to(ends.device()).set_requires_grad(true);
  for (int64_t begin = 0; begin < x.size(0); begin += kChunkPositions) {
    const torch::Tensor chunk = x.slice(0, begin, begin + kChunkPositions);
    const torch::Tensor logits = ends.logits_of(ends.finish(chunk));
    at::cross_entropy_loss(logits, draw(logits, random), {}, at::Reduction::Sum).backward();
  }
  return x.grad();
}

/// The sum of a batch, for gradients and states behind the block.
torch::Tensor fisher_of(const torch::Tensor& gradient, const torch::Tensor& state) {
  const torch::Tensor scaled = gradient * state.norm(2, {1}, /*keepdim=*/true);
  return scaled.t().matmul(scaled);
}

/// Gradients behind a block become those before it.
void pass_back(Model& block, const std::vector<Batch>& batches, int64_t index,
               const BlockStates& states, BlockStates& gradients) {
  for (size_t i = 0; i < batches.size(); ++i) {
    const torch::Tensor x = states.get(i, index).to(block.device()).set_requires_grad(true);
    block.blocks(x, batches[i]).backward(gradients.get(i).to(block.device()));
    gradients.put(i, x.grad());
  }
}

}  // namespace

void visit_block_fisher(const LoadPart& load, const ModelShape& shape,
                        const std::vector<Batch>& batches, uint64_t seed,
                        const std::string& scratch_folder, const FisherVisitor& visit) {
  check(!batches.empty(), "the Fisher information of blocks needs text");
  BlockStates states(scratch_folder, batches, shape.width);
  BlockStates gradients(scratch_folder, batches, shape.width);
  Progress progress("what errors cost", 2 * shape.num_layers, "blocks");
  keep_states(load, shape, batches, states, progress);
  const torch::AutoGradMode with_gradients(true);
  at::Generator random = at::make_generator<at::CPUGeneratorImpl>(seed);
  {
    const std::unique_ptr<Model> ends = load({0, 0, true});
    for (size_t i = 0; i < batches.size(); ++i)
      gradients.put(i, gradients_behind(*ends, states.get(i, shape.num_layers), random));
  }
  for (int64_t block = shape.num_layers - 1; block >= 0; --block) {
    torch::Tensor sum = torch::zeros({shape.width, shape.width});
    for (size_t i = 0; i < batches.size(); ++i)
      sum.add_(fisher_of(gradients.get(i), states.get(i, block + 1)));
    const double trace = sum.trace().item<double>();
    check(std::isfinite(trace) && trace > 0, "block ", block,
          ": the gradients behind it are not finite or all zero");
    visit(block, sum * (static_cast<double>(shape.width) / trace));
    if (block > 0) pass_back(*load({block, 1, false}), batches, block, states, gradients);
    progress.update(2 * shape.num_layers - block);
  }
}

}  // namespace nibble
