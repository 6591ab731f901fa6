// The tensor table of the llama architecture and of its relatives (llama_architectures()): what
// each tensor is called in GGUF and in Hugging Face checkpoints, its shape, and which architectures
// have it. Model, loader and converter read this one table (sources: llama.cpp
// src/models/<architecture>.cpp; transformers models/<family>). Without LibTorch.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace nibble {

struct Weight;

/// One transformer block's weights; nullptr where the file has none.
struct LlamaLayer {
  Weight *attention_norm = nullptr, *query = nullptr, *key = nullptr, *value = nullptr,
         *attention_output = nullptr, *query_bias = nullptr, *key_bias = nullptr,
         *value_bias = nullptr, *attention_output_bias = nullptr, *query_norm = nullptr,
         *key_norm = nullptr, *sinks = nullptr;
  Weight *feed_forward_norm = nullptr, *gate = nullptr, *up = nullptr, *down = nullptr,
         *gate_bias = nullptr, *up_bias = nullptr, *down_bias = nullptr;
  Weight *router = nullptr, *gate_experts = nullptr, *up_experts = nullptr, *down_experts = nullptr,
         *router_bias = nullptr, *gate_experts_bias = nullptr, *up_experts_bias = nullptr,
         *down_experts_bias = nullptr;
  // Of the expert that every position goes through: what it counts, and its feed-forward.
  Weight *shared_router = nullptr, *shared_gate = nullptr, *shared_up = nullptr,
         *shared_down = nullptr;
  Weight *post_attention_norm = nullptr, *post_feed_forward_norm = nullptr;
  Weight *query_key_value = nullptr, *gate_up = nullptr;  // in the place of three, and of two
  // Of a layer with a gated delta net, whose output is attention_output.
  Weight *delta_mixed = nullptr, *delta_gate = nullptr, *delta_alpha = nullptr,
         *delta_beta = nullptr, *delta_beta_alpha = nullptr, *delta_kernel = nullptr,
         *delta_decay = nullptr, *delta_time_step = nullptr, *delta_norm = nullptr;
};

/// Of the layers that have a gated delta net in the place of attention (model/gated_delta_net.h).
struct DeltaNetSizes {
  int64_t key_heads = 0, value_heads = 0, head_size = 0;
  int64_t kernel = 0;        // positions that the convolution looks at, itself counted
  std::vector<bool> layers;  // which; empty: none
  /// Value heads that share a key head lie side by side; otherwise those of all key heads do.
  bool shares_neighbours = false;

  int64_t key() const { return key_heads * head_size; }
  int64_t value() const { return value_heads * head_size; }
  int64_t mixed() const { return 2 * key() + value(); }
  bool is_in(int64_t layer) const {
    return layer < static_cast<int64_t>(layers.size()) && layers[static_cast<size_t>(layer)];
  }
};

enum class LlamaSize {
  kOne,
  kSingle,  // a matrix of one row
  kWidth,
  kTwoWidths,
  kVocab,
  kQuery,
  kKey,
  kHead,
  kHeads,
  kFeedForward,
  kQueryKeyValue,
  kGateUp,
  kExperts,
  kExpertFeedForward,
  kSharedFeedForward,
  kGatedQuery,
  kDeltaMixed,
  kDeltaValue,
  kDeltaHeads,
  kDeltaBetaAlpha,
  kDeltaHead,
  kDeltaKernel,
};

struct LlamaSizes {
  int64_t num_layers = 0, width = 0, vocab_size = 0, num_heads = 0, num_kv_heads = 0, head_size = 0,
          feed_forward = 0;
  /// Of a mixture of experts: how many there are, how many a position goes through, and how wide
  /// each is.
  int64_t num_experts = 0, experts_used = 0, expert_feed_forward = 0;
  int64_t shared_feed_forward = 0;  // of the expert that every position goes through
  DeltaNetSizes delta = {};
  int64_t of(LlamaSize size) const;
};

enum class Presence { kNone, kOptional, kRequired };

struct LlamaArchitecture;

/// A tensor that every block has, or may have.
struct LlamaTensorRow {
  Weight* LlamaLayer::*slot;
  const char* name;     // GGUF's, after "blk.<n>."
  const char* hf_name;  // after "model.layers.<n>."; "*" stands for an expert's number
  LlamaSize row_length, rows;
  bool turned;  // its rows are elements of heads that rotary positions turn
  unsigned must_have = 0, may_have = 0;  // sets of architectures' kinds of layers
  /// has_delta_net: in a layer that has.
  Presence presence(const LlamaArchitecture& architecture, bool has_delta_net = false) const;
  /// Whether it holds such a matrix, or vector, for each expert.
  bool is_stack() const { return std::string_view(name).find("_exps.") != std::string_view::npos; }
};

/// A tensor that the model has once.
struct LlamaModelTensor {
  const char *name, *hf_name;
  LlamaSize row_length, rows;
  Presence presence;
};

inline constexpr const char *kTokenEmbedding = "token_embd.weight",
                            *kOutputNorm = "output_norm.weight", *kOutput = "output.weight",
                            *kRopeDivisors = "rope_freqs.weight",
                            *kRopeDivisorsLong = "rope_factors_long.weight",
                            *kRopeDivisorsShort = "rope_factors_short.weight";

struct LlamaArchitecture {
  std::string_view name;   // general.architecture
  unsigned bit;            // in the sets of the table's rows
  unsigned delta_bit = 0;  // of its layers with a gated delta net; 0: it has none
  /// Rotary positions turn element i of a head with element i + d/2, as in Hugging Face's code;
  /// otherwise element 2i with 2i + 1, for which GGUF has the rows of q and k in another order.
  bool turns_halves = false;
  /// gemma2's and gemma3's: embeddings times the root of their width, GELU instead of SiLU, and in
  /// Hugging Face's checkpoints norms of 1 + w.
  bool is_gemma = false;
  /// Of so many layers in a row all but the last attend to a window, where the file says how long;
  /// 0: none does.
  int64_t window_period = 0;
  /// gemma's model of so many layers divides what queries and keys make by the root of the width
  /// per head; the others, as all models here, by that of a head's size.
  int64_t layers_of_27b = 0;
  bool is_always_tied = false;  // its files have no output matrix
  /// Of so many layers in a row the last has no rotary positions (smollm3); 0: all have.
  int64_t unturned_period = 0;
  /// Its keys scale embeddings, scores, what each half of a block adds, and logits (granite).
  bool has_scales = false;
  /// A part of each head may be turned only, by one set of divisors up to the context that the
  /// model was trained on first and by another beyond it (phi3: LongRoPE, arXiv:2402.13753).
  bool has_long_rope = false;
  bool has_experts = false;  // each block's feed-forward is a mixture of experts
  bool has_shared_expert = false;
  /// q has beside each head a gate of what attention gives, and a part of each head is turned only
  /// (qwen35).
  bool gates_attention = false;
  /// Each head's softmax has one more score, which is learned and gives no value, and experts have
  /// biases, limits of what enters their product, and in checkpoints columns for rows, gate and up
  /// by turns (gpt-oss).
  bool has_sinks = false;
  /// Its delta nets' value heads lie in GGUF as in checkpoints (qwen3next).
  bool keeps_value_heads = false;
};

std::span<const LlamaTensorRow> llama_tensor_rows();
/// But for the divisors of angles, which are no part of Hugging Face's checkpoints.
std::span<const LlamaModelTensor> llama_model_tensors();
/// What a layer that predicts further tokens (MTP) has besides the tensors of one that attends, of
/// architectures with delta nets: GGUF's names after "blk.<n>." where n counts on from the model's
/// layers, checkpoints' names (source: llama.cpp src/models/qwen35.cpp).
std::span<const LlamaModelTensor> llama_mtp_tensors();
std::span<const LlamaArchitecture> llama_architectures();
/// By GGUF's name; nullptr when nibble does not have it. One name can stand for two: a llama, and a
/// llama with experts (Mixtral).
const LlamaArchitecture* find_llama_architecture(std::string_view name, bool has_experts = false);

}  // namespace nibble
