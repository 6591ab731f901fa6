// What a mix gives each tensor: llama-quantize's rules that look at the whole model (facts read
// from llama_tensor_get_type_impl in llama.cpp src/llama-quant.cpp at the commit that
// llama-cpp-python 0.3.36 ships). One function per role in mix.cc, one case per file type. Rules
// about single tensors, fallbacks included, are in rules.h; what a user asks for instead is in
// plan.cc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf.h"
#include "quant/mix/file_type.h"
#include "quant/mix/rules.h"

namespace nibble {

/// What the rules look at besides the tensor.
struct MixFacts {
  std::string architecture;
  int64_t num_layers = 0;
  int64_t num_experts = 0;
  int64_t heads_per_kv_head = 0;  // in the first layer; 0 where that is not known
  bool is_70b = false;            // what llama.cpp calls so: it goes by the number of layers
  bool tied = false;              // the token embedding is the output, too
  int64_t num_attention_v = 0;    // tensors of that role
  bool has_imatrix = false;
};

/// tensor_names: all that will be written.
MixFacts mix_facts(const GgufMetadata& metadata, const std::vector<std::string>& tensor_names,
                   bool has_imatrix);

/// The rules of one file. They count: tensors must be asked about in llama-quantize's own order,
/// each one that the rules decide about and no other.
class Mix {
 public:
  Mix(MixFacts facts, const FileTypeInfo& file_type)
      : facts_(std::move(facts)), file_type_(file_type) {}

  const MixFacts& facts() const { return facts_; }
  /// shape: in ggml order. The type may not divide the row. Throws Error for an expert whose name
  /// does not tell its layer.
  GgmlType choose(const std::string& name, const std::vector<int64_t>& shape, TensorRole role);

 private:
  MixFacts facts_;
  FileTypeInfo file_type_;
  int64_t num_attention_v_ = 0, num_ffn_down_ = 0, num_ffn_gate_ = 0, num_ffn_up_ = 0;
};

}  // namespace nibble
