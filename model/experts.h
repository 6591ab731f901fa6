// Mixtures of experts (Shazeer et al. 2017, "Outrageously Large Neural Networks", arXiv:1701.06538)
// as Mixtral and Qwen3 have them: a router gives each position to a few of many feed-forwards,
// whose results are added up by the router's probabilities. Positions are brought into the order of
// their experts, so that each expert that is reached has one matmul.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "quant/fake/torch.h"

namespace nibble {

/// The loss that keeps experts equally busy (Fedus et al. 2021, "Switch Transformers",
/// arXiv:2101.03961, equations 4 to 6), over all blocks of one forward pass together, as
/// transformers' load_balancing_loss_func has it: E times the sum over experts of their rows for
/// each position times their mean probability. K where all are alike.
class LoadBalance : public std::enable_shared_from_this<LoadBalance> {
 public:
  explicit LoadBalance(double weight) : weight_(weight) {}
  /// The same probabilities; in the backward pass the weighted loss's gradient is added to theirs.
  /// It wants all blocks' routings, so it must come after complete().
  torch::Tensor add(const torch::Tensor& probabilities, const torch::Tensor& experts);
  /// After the forward pass: a block that is run again is not counted again.
  void complete() { complete_ = true; }
  double loss() const;
  /// Of a position's probabilities, [E].
  torch::Tensor gradient() const;

 private:
  double weight_;
  bool complete_ = false;
  torch::Tensor rows_, probabilities_;  // [E] float32, sums over positions and blocks
  int64_t positions_ = 0;
};

/// Which experts each of N positions goes to, K of them, and what they count.
struct Routing {
  torch::Tensor weights;  // [N, K] float32, of each position a sum of 1
  torch::Tensor experts;  // [N, K] int64
};

/// The K most probable experts of each position. probabilities [N, E] float32. balance: is told of
/// them, or nullptr.
Routing route(const torch::Tensor& probabilities, int64_t experts_used, LoadBalance* balance);

/// The N * K rows of a routing, expert by expert.
struct ExpertRows {
  torch::Tensor positions;      // [N * K] int64: which position each row is of
  torch::Tensor rows;           // [N * K] int64: which row each of the routing's entries is
  torch::Tensor experts;        // [N * K] int64: which expert each row is of
  std::vector<int64_t> counts;  // [E]: rows of each expert
};

ExpertRows rows_by_expert(const torch::Tensor& experts, int64_t num_experts);

struct MixtureSizes {
  int64_t num_experts, experts_used, width, feed_forward;
  int64_t shared_feed_forward = 0;  // of the expert that every position goes through; 0: none
  bool has_biases = false;          // of the experts that are used
};

/// What a mixture keeps for the backward pass, in bytes per position, beside its input as a matmul
/// takes it. used: bytes of a number that enters a matmul.
int64_t mixture_bytes(const MixtureSizes& sizes, int64_t used);

/// x [rows, in] in the order of `counts`, by each expert's matrix in each of `weights`
/// [E, out_i, in]: {[rows, out_i]}. Gradients as those of project() in model/layers.h; experts
/// without rows get none, or zeros where others of their stack have some.
std::vector<torch::Tensor> project_experts(const torch::Tensor& x,
                                           const std::vector<int64_t>& counts,
                                           const std::vector<torch::Tensor>& weights,
                                           torch::Dtype dtype);

}  // namespace nibble
