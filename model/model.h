// A language model as the rest of nibble sees it: named weights, and a forward pass. Architectures
// are one file pair each (model/llama.h); load_model() picks by general.architecture.
//
// Every weight is float32 in GGUF's layout (q/k rows permuted as llama.cpp wants). A Weight is also
// the quantizer slot: whoever trains on a grid writes W^ into `value` and reads dL/dW^ from
// value.grad(), where the backward pass adds it up (model/layers.h says what that leaves out).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "quant/fake/torch.h"

namespace nibble {

/// How what enters a matmul is rounded first (model/activation_rounding.h). kQ8_0: 8 bits in blocks
/// of 32 with a float16 scale, also ggml's Q8_1, whose values are the same. kQ8_K: blocks of 256
/// with a float32 scale.
enum class ActivationRounding { kNone, kFloat16, kBfloat16, kQ8_0, kQ8_K };

/// In the place of an expert's number.
constexpr int64_t kNoExpert = -1;

struct Weight {
  std::string name;     // GGUF's: "blk.0.attn_q.weight"
  torch::Tensor value;  // float32 (see keep_matrices_cast); a linear layer's is [rows, row length]
                        // = [out, in], a stack of experts' [experts, out, in]. May be one that is
                        // made on use: values_of() (model/made_weight.h) reads any
  GgmlType source = GgmlType::kF32;
  ActivationRounding activations = ActivationRounding::kNone;  // of what it is multiplied with

  bool is_stack() const { return value.dim() == 3; }
  /// What one expert of a stack has; all of it for kNoExpert.
  torch::Tensor matrix(int64_t expert) const;
};

/// Shape letters: B sequences, T positions, D model width, V vocabulary. It may lie on the CPU
/// whatever the model's device is.
struct Batch {
  torch::Tensor tokens;  // [B, T] int64
  torch::Tensor
      document;  // [B, T] int64, or undefined: each row is one document. A document is a run of
                 // equal numbers within a row; a position attends to its document's positions up to
                 // itself, and rotary positions count from the document's first token.
  torch::Tensor trained = {};  // [B, T] bool: tokens that count in a loss; undefined: all
};

/// Keys and values of what was read so far, for generation.
class KvCache {
 public:
  virtual ~KvCache() = default;
  virtual int64_t length() const = 0;
};

/// Tokens [T] int64, on any device, that follow what the cache holds.
struct NextTokens {
  torch::Tensor tokens;
  KvCache* cache = nullptr;
};

struct ModelShape {
  std::string architecture;  // "llama"
  int64_t num_layers = 0, width = 0, vocab_size = 0, context_length = 0;
  double logit_cap =
      0;  // logits l become cap tanh(l / cap) (model/layers.h, soft_cap); 0: they stay
  int64_t num_experts = 0;  // of each block; 0: it is no mixture of experts
};

/// Tensors of which one makes, channel by channel, what the others are multiplied with: a factor
/// per channel can move from the first to the others, and the model computes the same.
struct ChannelLink {
  std::vector<Weight*> makers;  // a norm's weight, or a matrix and its bias: [rows] or [rows, ...]
  std::vector<Weight*> takers;  // matrices, [out, channels]
  torch::Tensor maker_row;      // [channels] int64: where heads share a value, a row makes several
  int64_t first_row = 0;  // what maker_row counts from: a matrix may hold more than the makers
  int64_t num_rows() const { return maker_row.max().item<int64_t>() + 1; }
};

/// Sees what enters the matmuls of a model's blocks: x [N, in] float32, all positions of a batch,
/// and the weights that it is multiplied by. Of stacks, each expert in its turn: the positions that
/// reach it, which can be none. So each batch has the same matmuls in the same order.
using MatmulObserver = std::function<void(
    const torch::Tensor& x, const std::vector<const Weight*>& weights, int64_t expert)>;

class Model {
 public:
  virtual ~Model() = default;

  virtual const ModelShape& shape() const = 0;
  /// In the source file's order; a tied output is one weight, used twice. Constants of the file
  /// that no training changes (rope_freqs.weight) are not among them.
  virtual std::vector<Weight*> weights() = 0;
  Weight* find_weight(const std::string& name);

  /// [B, T, D] after the last norm: what the output matrix is applied to, rounded as it wants it.
  virtual torch::Tensor hidden(const Batch& batch) = 0;
  /// The steps of hidden(), N = B * T positions: [N, D] that enters the first block, and what
  /// leaves the last one when `x` [N, D] enters the first. Of a model that was loaded in part, its
  /// own blocks.
  virtual torch::Tensor embed(const Batch& batch) = 0;
  virtual torch::Tensor blocks(const torch::Tensor& x, const Batch& batch) = 0;
  /// hidden()'s last step: [N, D] that leaves the last block, normed and rounded.
  virtual torch::Tensor finish(const torch::Tensor& x) const = 0;
  /// [V, D]: output.weight, or token_embd.weight where tied. Not all of how logits come about: see
  /// ModelShape::logit_cap.
  virtual const torch::Tensor& output_weight() const = 0;
  /// Where all weights lie, and what hidden() returns.
  virtual torch::Device device() const { return output_weight().device(); }
  /// [B, T, V] float32.
  torch::Tensor logits(const Batch& batch);
  /// [N, V] float32, for states [N, D] of hidden() or hidden_next().
  torch::Tensor logits_of(const torch::Tensor& states);

  /// In the order of the forward pass; none for an architecture that does not tell.
  virtual std::vector<ChannelLink> channel_links() { return {}; }

  virtual std::unique_ptr<KvCache> new_cache() = 0;
  /// [N, D] for the N tokens of all `texts`, one after the other, which share each matmul.
  virtual torch::Tensor hidden_next(const std::vector<NextTokens>& texts) = 0;
  torch::Tensor hidden_next(const torch::Tensor& tokens, KvCache& cache) {
    return hidden_next({{tokens, &cache}});
  }

  /// bfloat16: matmuls and attention run in bfloat16, everything else in float32.
  virtual void set_compute_dtype(torch::Dtype dtype) = 0;
  virtual torch::Dtype compute_dtype() const = 0;
  /// For a model that is not trained: from here on its matrices lie in the compute dtype, instead
  /// of being cast in every forward pass. Same bits; the embedding table, which is not only
  /// multiplied with, and routers stay float32.
  void keep_matrices_cast();
  /// From now on the backward pass adds the gradients of `weight` times the loss that keeps the
  /// experts of a mixture equally busy (model/experts.h), of each batch by itself. 0: none.
  void set_load_balance(double weight) { load_balance_weight_ = weight; }
  /// That loss, not weighted, of the last blocks(); 0 where it was not asked for.
  double load_balance() const { return load_balance_; }
  /// On: the backward pass keeps each block's input only and runs the block again
  /// (model/recompute.h); same bits, about a third more time, a fraction of the memory.
  void set_activation_checkpointing(bool on) { activation_checkpointing_ = on; }
  /// Called from now on at each matmul in the blocks; an empty one ends that.
  void set_matmul_observer(MatmulObserver observer) { observer_ = std::move(observer); }
  /// A second model of the same shape with copies of all weights.
  virtual std::unique_ptr<Model> copy() = 0;
  int64_t num_parameters();

 protected:
  /// x [N, in], rounded as each wants it, by each of the weights [out_i, in], in compute_dtype():
  /// {[N, out_i]}. Stacks: `counts` says how many rows of x each expert has, one after the other. A
  /// router's matmul is float32 in any case: in another type it would choose other experts.
  std::vector<torch::Tensor> project(const torch::Tensor& x,
                                     const std::vector<const Weight*>& weights,
                                     const std::vector<int64_t>& counts = {}) const;

  bool activation_checkpointing_ = false;
  double load_balance_weight_ = 0, load_balance_ = 0;

 private:
  void show_observer(const torch::Tensor& x, const std::vector<const Weight*>& weights,
                     const std::vector<int64_t>& counts) const;

  MatmulObserver observer_;
};

/// Observes a model's matmuls for as long as it lives.
class MatmulObservation {
 public:
  MatmulObservation(Model& model, MatmulObserver observer) : model_(model) {
    model.set_matmul_observer(std::move(observer));
  }
  ~MatmulObservation() { model_.set_matmul_observer({}); }
  MatmulObservation(const MatmulObservation&) = delete;
  MatmulObservation& operator=(const MatmulObservation&) = delete;

 private:
  Model& model_;
};

/// What the forward pass keeps for the backward pass, in bytes per position.
struct ActivationBytes {
  int64_t block = 0;        // of one block
  int64_t block_input = 0;  // of it, what activation checkpointing keeps
  int64_t num_blocks = 0;
};

/// Which of a file's weights to load: by default all.
struct ModelPart {
  int64_t first_block = 0;
  int64_t num_blocks = -1;  // -1: all that follow
  bool ends = true;         // what comes before the blocks and after them
  /// Matrices stay in the file and are made when they are used (model/made_weight.h).
  bool on_use = false;
};

/// Throws what load_model() would throw for the file's architecture and tensor table, without
/// decoding a weight.
void check_model(const GgufFile& file);
/// From the file's metadata.
ModelShape model_shape(const GgufFile& file);
/// Of the file's model with matmuls in `dtype`, from its metadata.
ActivationBytes activation_bytes(const GgufFile& file, torch::Dtype dtype);
/// Loads the weights of a GGUF file of any type nibble decodes, as float32, frozen (no gradient).
/// Throws for an unknown architecture, a missing tensor, or one of another shape than the metadata
/// wants.
std::unique_ptr<Model> load_model(const GgufFile& file, torch::Device device = torch::kCPU,
                                  const ModelPart& part = {});
/// As model.copy().
std::unique_ptr<Model> copy_model(Model& model);

}  // namespace nibble
