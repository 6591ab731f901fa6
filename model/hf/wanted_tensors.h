// The tensors that a Hugging Face model of a configuration has, by their names there and in GGUF.
// Experts come one by one, as the hub has them, or in stacks, gate and up in one, as transformers 5
// has them in memory, or as gpt-oss has them: stacks with biases; GGUF has a stack for each.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/hf/config.h"

namespace nibble {

/// Elements in another order: of each outer * inner * size of them from `first` on, what lies as
/// [outer, inner, size] in the checkpoint lies as [inner, outer, size] in GGUF.
struct HfOrder {
  int64_t first = 0, outer = 1, inner = 1, size = 1;

  bool is_another() const { return outer > 1 && inner > 1; }
  /// Where the element comes from that goes to `i`.
  int64_t source(int64_t i) const {
    if (!is_another() || i < first) return i;
    const int64_t within = (i - first) % (outer * inner * size), element = within / size;
    return i - within + (element % outer * inner + element / outer) * size + within % size;
  }
  /// The way back.
  HfOrder inverse() const { return {first, inner, outer, size}; }
};

/// Rows of a tensor that come to stand side by side: `count` runs of `length`, `stride` apart.
struct HfRuns {
  int64_t first, length, count, stride;
};

/// What becomes of a checkpoint's numbers.
enum class HfChange { kNone, kAddOne, kMinusExp };

/// Every tensor that the configuration wants, by its name in the checkpoint.
class WantedTensors {
 public:
  /// One of the GGUF file.
  struct Target {
    std::string name, hf_name;  // of a stack, "*" stands for the expert's number, where it is split
    int64_t row_length = 1, rows = 1;  // a vector of a stack is one column
    int64_t num_experts = 0;           // of a stack
    bool is_matrix = false, required = true;
    bool is_convolution = false;                  // [rows, 1, row length] in the checkpoint
    HfOrder rows_order = {}, columns_order = {};  // of each matrix; a vector's elements are columns
    std::vector<HfRuns> runs =
        {};  // of a matrix that is a part of a larger one: where its rows lie
    HfChange change = HfChange::kNone;
    bool is_transposed = false;  // its rows are columns in the checkpoint

    /// The type of matrices; norms, biases, routers and convolutions are float32.
    bool takes_matrix_type() const {
      return is_matrix && !is_convolution && name.find(".ffn_gate_inp") == std::string::npos;
    }
    std::vector<int64_t> shape() const;  // ggml order
    /// Of what it is made of in the checkpoint: one tensor, or one of each expert.
    int64_t num_parts() const { return num_experts > 0 ? num_experts : 1; }
    std::string part_name(int64_t index) const;
    std::vector<int64_t> part_shape() const;  // slowest first
    bool keeps_rows() const { return runs.empty() && !rows_order.is_another() && !is_transposed; }
    /// The row of a part that becomes row `row`, and how many rows there are.
    int64_t source_row(int64_t row) const;
    int64_t source_rows() const { return runs.empty() ? rows : runs[0].count * runs[0].stride; }
  };
  /// What a tensor of the checkpoint gives to a target: the matrices of `num_matrices` experts from
  /// `first_expert` on, or the one that there is.
  struct Place {
    size_t target;  // of targets()
    int64_t first_expert = 0, num_matrices = 1;
    int64_t first_row = 0, stride = 0;  // rows of the tensor: where they begin, how far apart
    std::vector<int64_t> shape;         // of the tensor, slowest first
  };

  explicit WantedTensors(const HfConfig& config);

  const std::vector<Target>& targets() const { return targets_; }
  /// Of the checkpoint's tensors, experts one by one.
  const std::vector<std::string>& names() const { return names_; }
  /// Empty for a tensor that the model does not have.
  std::span<const Place> find(const std::string& hf_name) const;

 private:
  /// `prefix`: what its names in the checkpoint begin with.
  void add_layer(const LlamaTensorRow& row, int64_t layer, const std::string& prefix);
  void add_single(const LlamaModelTensor& tensor, const std::string& prefix);
  void order_value_heads(const LlamaTensorRow& row, Target& target) const;
  void split_key_heads(const LlamaTensorRow& row, Target& target) const;
  void add(Target target);
  /// `mlp`: what the names of the stacks in transformers 5 begin with.
  void add_stack(Target target, Weight* LlamaLayer::*slot, const std::string& mlp);
  void add_stack_of_columns(Target target, Weight* LlamaLayer::*slot);
  void add_name(const std::string& name);

  HfConfig config_;
  std::vector<Target> targets_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, std::vector<Place>> places_;
};

}  // namespace nibble
