// What a gated delta net (Yang, Kautz and Hatamizadeh, arXiv:2412.06464) computes between its
// matmuls, as Qwen3-Next and Qwen3.5 have it in most of their layers in the place of attention: a
// short causal convolution of queries, keys and values, a state of [d, d] per value head that
// decays and learns each value at its key, and a norm with a gate. All in float32.
//
// Over a document, per value head, with a state S that starts at 0 and normed q and k:
//   S <- exp(g_t) S;   S <- S + k_t (beta_t (v_t - S^T k_t))^T;   y_t = S^T q_t
// where g_t = a softplus(alpha_t + dt), a < 0, and beta_t is a sigmoid. Value head h reads key head
// h % G of G, or h / (H / G) where sizes.shares_neighbours: the orders in which GGUF has them
// (sources: llama.cpp src/models/qwen35.cpp, src/models/qwen3next.cpp).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "model/attention.h"
#include "model/llama_tensors.h"
#include "quant/fake/torch.h"

namespace nibble {

/// From the keys <architecture>.ssm.* and those that say which layers are recurrent. Throws for a
/// missing or impossible key, naming it.
DeltaNetSizes read_delta_net_sizes(const GgufMetadata& metadata, const std::string& architecture,
                                   int64_t num_layers);

/// Documents cut into chunks, of which each step of the recurrence takes one of every document that
/// has so many. Chunks lie by step, and within a step by document, longest documents first.
struct DocumentChunks {
  torch::Tensor positions;            // [N] int64, counted from each document's first token
  torch::Tensor rows;                 // [chunks * size] int64: which row lies there, 0 for none
  torch::Tensor filled;               // [chunks, size] float32: 1 where a row lies, else 0
  torch::Tensor places;               // [N] int64: where each row lies
  std::vector<int64_t> of_each_step;  // how many chunks
};
/// Chunks of at most 64 positions.
DocumentChunks chunk_documents(const Packing& packing, torch::Device device);

/// What a document that is read in parts goes on from; undefined before its first.
struct DeltaNetState {
  torch::Tensor mixed;  // [up to kernel - 1, C]: what the convolution still looks at
  torch::Tensor heads;  // [H, d, d]
};

/// x [N, C], kernel [C, K]: each channel's K last values in its document, weighted; [N, C].
/// positions as in DocumentChunks.
torch::Tensor causal_convolution(const torch::Tensor& x, const torch::Tensor& kernel,
                                 const torch::Tensor& positions);

/// The recurrence above, chunk by chunk (section 3.3 of the paper). q and k [N, G, d], v [N, H, d],
/// G a divisor of H, g <= 0 and beta [N, H]: y [N, H * d]. `state` [H, d, d], of a single document:
/// what it starts from, if defined, and what it ends with.
torch::Tensor gated_delta_rule(const torch::Tensor& q, const torch::Tensor& k,
                               const torch::Tensor& v, const torch::Tensor& g,
                               const torch::Tensor& beta, const DocumentChunks& chunks,
                               torch::Tensor* state = nullptr);

/// What the first matmuls give, for N positions.
struct DeltaNetInputs {
  torch::Tensor mixed;        // [N, C]: queries, keys and values
  torch::Tensor gate;         // [N, H * d]
  torch::Tensor alpha, beta;  // [N, H]
};
struct DeltaNetWeights {
  torch::Tensor kernel;            // [C, K]
  torch::Tensor decay, time_step;  // [H]: a, dt
  torch::Tensor norm;              // [d]
};
/// [N, H * d], which the last matmul takes. With a `state` the positions go on from it.
torch::Tensor gated_delta_net(const DeltaNetInputs& inputs, const DeltaNetWeights& weights,
                              const DeltaNetSizes& sizes, double norm_epsilon,
                              const DocumentChunks& chunks, DeltaNetState* state = nullptr);

/// Bytes per position of long documents that it keeps for the backward pass, what the last matmul
/// takes left out.
int64_t delta_net_activation_bytes(const DeltaNetSizes& sizes);

}  // namespace nibble
