// llama-quantize's rules about single tensors, from their names and shapes (facts read from
// llama.cpp src/llama-quant.cpp at the commit that llama-cpp-python 0.3.36 ships). The rules that
// look at a whole file (the n-th ffn_down, tied embeddings) are in mix.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/ggml_type.h"

namespace nibble {

enum class TensorRole {
  kTokenEmbedding,
  kOutput,
  kAttentionV,  // everything that holds a V projection: attn_v, attn_qkv, attn_kv_b
  kAttentionK,
  kAttentionQ,
  kAttentionOutput,
  kFfnUp,
  kFfnGate,
  kFfnDown,
  kOther
};

TensorRole role_of(std::string_view name);
/// For people: "attn_v".
std::string_view role_name(TensorRole role);

/// Why llama-quantize leaves a tensor as it is ("norm", "fewer than 2 dimensions"); empty when it
/// may be quantized.
std::string_view kept_because(std::string_view name, const std::vector<int64_t>& shape,
                              std::string_view architecture);

/// `type` where its blocks divide rows of `row_length`; otherwise the type that takes its place, in
/// the end F16.
GgmlType type_that_fits(GgmlType type, int64_t row_length);

/// "blk.7.ffn_down.weight" -> 7; nothing for a name outside the blocks.
std::optional<int64_t> layer_of(std::string_view name);

/// Also of "enc.blk.7." and the like, which belong to their layer when it is pruned.
bool is_in_layers(std::string_view name, const std::vector<int64_t>& layers);

/// The name that a tensor of a layer that stays has in a file without the layers `pruned`: those
/// behind them move up.
std::string name_after_pruning(const std::string& name, const std::vector<int64_t>& pruned);

/// As ggml counts them: dimensions of size 1 at the end do not count, at least 1.
int num_dimensions(const std::vector<int64_t>& shape);

/// True for every type but the plain floats and integers.
bool is_quantized(GgmlType type);

}  // namespace nibble
