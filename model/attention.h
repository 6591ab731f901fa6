// Causal grouped-query attention over packed documents.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model.h"
#include "quant/fake/torch.h"

namespace nibble {

/// What one position takes of the others.
struct AttentionRule {
  int64_t window = 0;  // positions, itself counted, that it attends to; 0: all
  double scale = 0;    // of the products of queries and keys
  double cap = 0;      // scaled products s become cap tanh(s / cap); 0: they stay
  /// [H] float32, a score of each head that joins the softmax and gives no value; undefined: none.
  torch::Tensor sinks = {};
};

/// [rows, positions] bool: which positions the last `rows` of them attend to.
torch::Tensor causal_mask(int64_t rows, int64_t positions, int64_t window,
                          const torch::TensorOptions& options);

/// Where the documents of a batch lie once its rows are put one after the other.
struct Packing {
  // [N] int64, counted from each document's first token; on the batch's device.
  torch::Tensor positions;
  std::vector<int64_t> lengths;  // of the documents, in order; their sum is N
  int64_t longest = 0;
};

/// A new document starts at each row, and wherever batch.document changes within one.
Packing pack_documents(const Batch& batch);

/// q: [N, H, d], k and v: [N, G, d] float32, G a divisor of H. Each position attends to its
/// document's positions up to itself; softmax(scale q k) v: [N, H * d]. Computed in dtype, document
/// by document (all at once where they are equally long), so that the cost is that of the
/// documents, not of the whole row.
torch::Tensor attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                     const Packing& packing, torch::Dtype dtype, const AttentionRule& rule);

/// The last T of P positions attend to all up to themselves. q: [T, H, d], k and v: [P, G, d]; [T,
/// H * d].
torch::Tensor attend_cached(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                            torch::Dtype dtype, const AttentionRule& rule);

}  // namespace nibble
