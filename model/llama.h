// The llama architecture: pre-norm blocks of RMSNorm, rotary grouped-query attention and a SwiGLU
// feed-forward (Touvron et al., arXiv:2302.13971), with the optional biases and rope divisors that
// llama.cpp reads (source: llama.cpp src/models/llama.cpp), and what differs from it by a few
// tensors: qwen2 (biases of q, k and v; heads turned by halves), qwen3 (instead of the biases, a
// norm of each head of q and k), mixtures of experts in the place of the feed-forward (a llama's,
// Mixtral; qwen3moe), gemma2 (norms after attention and feed-forward too, GELU, scaled embeddings,
// windows of attention in each second layer, caps of scores and logits), gemma3 (those norms and
// the heads', windows in five layers of six, with a rotation of their own), smollm3 (no rotary
// positions in each fourth layer), granite (scales of embeddings, scores, blocks and logits), phi3
// (q, k and v in one matrix, gate and up in another; LongRoPE), qwen35 (qwen3's norms, a gate on
// what attention gives, a part of each head turned, and in three layers of four a gated delta net
// in the place of attention), qwen35moe and qwen3next (such layers with mixtures of experts, one of
// which every position goes through), and gpt-oss (attention that may go to a sink, windows in each
// second layer, experts with biases and limits).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/attention.h"
#include "model/experts.h"
#include "model/gated_delta_net.h"
#include "model/llama_options.h"
#include "model/llama_tensors.h"
#include "model/model.h"
#include "model/rope.h"
#include "model/tensors.h"

namespace nibble {
/// Every tensor that a file of these options may hold.
std::vector<TensorSpec> llama_tensors(const LlamaOptions& options);
/// Counted from what the functions of model/layers.h and model/attention.h save.
ActivationBytes llama_activation_bytes(const LlamaOptions& options, torch::Dtype dtype);

class Llama : public Model {
 public:
  /// `weights` are those of llama_tensors(options), of the right shapes; complete, or of a part
  /// of the model.
  Llama(LlamaOptions options, std::vector<std::unique_ptr<Weight>> weights);

  const ModelShape& shape() const override { return options_.shape; }
  std::vector<Weight*> weights() override;
  torch::Tensor hidden(const Batch& batch) override;
  torch::Tensor embed(const Batch& batch) override;
  torch::Tensor blocks(const torch::Tensor& x, const Batch& batch) override;
  torch::Tensor finish(const torch::Tensor& x) const override;
  const torch::Tensor& output_weight() const override;
  torch::Device device() const override { return weights_.front()->value.device(); }
  std::vector<ChannelLink> channel_links() override;
  std::unique_ptr<KvCache> new_cache() override;
  using Model::hidden_next;
  torch::Tensor hidden_next(const std::vector<NextTokens>& texts) override;
  void set_compute_dtype(torch::Dtype dtype) override { dtype_ = dtype; }
  torch::Dtype compute_dtype() const override { return dtype_; }
  std::unique_ptr<Model> copy() override;

 private:
  struct Heads {
    torch::Tensor q, k, v;  // [N, H, d], [N, G, d], [N, G, d]; q and k turned
    torch::Tensor gate;     // [N, H * d], of what attention gives; undefined: there is none
    torch::Tensor gated(const torch::Tensor& attended) const {
      return gate.defined() ? attended * gate.sigmoid() : attended;
    }
  };
  /// Of layers without and with a window, as Rope::rotation() gives them.
  struct Rotations {
    torch::Tensor full, windows;
  };
  Rotations rotations(const torch::Tensor& positions, int64_t limit);
  /// Of tokens that follow others, text by text.
  Rotations rotations_next(const std::vector<NextTokens>& texts);
  bool is_long(int64_t positions) const {
    return options_.long_from > 0 && positions > options_.long_from;
  }
  /// Undefined for a layer whose heads are not turned.
  torch::Tensor rotation_of(size_t layer, const Rotations& all) const;
  /// The block's heads for x [N, D]; rotation: undefined where they are not turned.
  Heads heads(const LlamaLayer& layer, const torch::Tensor& x, const torch::Tensor& rotation) const;
  /// One block of packed documents, x [N, D] -> [N, D].
  torch::Tensor block(const LlamaLayer& layer, const torch::Tensor& x, const Packing& packing,
                      const torch::Tensor& rotation, const AttentionRule& rule,
                      LoadBalance* balance) const;
  /// What stands in the place of attention, before its last matmul: x [N, D] -> [N, inner].
  torch::Tensor delta_net(const LlamaLayer& layer, const torch::Tensor& x,
                          const DocumentChunks& chunks, DeltaNetState* state = nullptr) const;
  /// Attention, or what stands in its place, of tokens that follow others.
  torch::Tensor attended_next(size_t layer, const torch::Tensor& x,
                              const std::vector<NextTokens>& texts, const Rotations& all) const;
  torch::Tensor delta_net_next(size_t layer, const torch::Tensor& x,
                               const std::vector<NextTokens>& texts,
                               const std::vector<DocumentChunks>& chunks) const;
  /// Of each text, for layers with a delta net; none where there are no such layers.
  std::vector<DocumentChunks> chunks_next(const std::vector<NextTokens>& texts) const;
  /// Its first matmuls.
  static std::vector<Weight*> delta_projections(const LlamaLayer& layer);
  bool has_delta_net(size_t layer) const { return options_.delta.is_in(block_of(layer)); }
  /// [N, D] for tokens [N] int64 on the model's device.
  torch::Tensor embedded(const torch::Tensor& tokens) const;
  AttentionRule rule_of(size_t layer) const {
    const Weight* sinks = layers_[layer].sinks;
    return {options_.has_window(block_of(layer)) ? options_.window : 0, options_.attention_scale,
            options_.attention_cap, sinks ? sinks->value : torch::Tensor()};
  }
  /// Counted from the whole model's first.
  int64_t block_of(size_t layer) const {
    return options_.first_block + static_cast<int64_t>(layer);
  }
  /// x plus the attention output, plus the feed-forward of that.
  torch::Tensor finish_block(const LlamaLayer& layer, const torch::Tensor& x,
                             const torch::Tensor& attended, LoadBalance* balance) const;
  torch::Tensor feed_forward(const LlamaLayer& layer, const torch::Tensor& x) const;
  /// The same of a mixture of experts. balance: nullptr where none is wanted.
  torch::Tensor mixture(const LlamaLayer& layer, const torch::Tensor& x,
                        LoadBalance* balance) const;
  torch::Tensor shared_expert(const LlamaLayer& layer, const torch::Tensor& x) const;
  void bind();

  LlamaOptions options_;
  std::vector<std::unique_ptr<Weight>> weights_;  // in file order
  Weight *token_embedding_ = nullptr, *output_norm_ = nullptr, *output_ = nullptr;
  std::vector<LlamaLayer> layers_;
  Rope rope_, window_rope_, long_rope_;
  torch::Dtype dtype_ = torch::kFloat32;
};

std::unique_ptr<Model> load_llama(const GgufFile& file, torch::Device device,
                                  const ModelPart& part = {});

}  // namespace nibble
