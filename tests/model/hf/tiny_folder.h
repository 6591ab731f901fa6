// A Hugging Face folder in miniature: config.json, model.safetensors and tokenizer.json of a llama
// with one layer, two heads of four elements, and seven tokens.
#pragma once

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "tests/io/temporary_folder.h"

namespace nibble {

struct TinyFolder {
  using Json = nlohmann::json;

  Json config = {{"architectures", {"LlamaForCausalLM"}},
                 {"hidden_size", 8},
                 {"intermediate_size", 6},
                 {"num_attention_heads", 2},
                 {"num_key_value_heads", 1},
                 {"num_hidden_layers", 1},
                 {"max_position_embeddings", 32},
                 {"rms_norm_eps", 1e-5},
                 {"vocab_size", 7},
                 {"hidden_act", "silu"},
                 {"rope_theta", 500.0}};
  Json tokenizer = {
      {"added_tokens", {{{"id", 5}, {"content", "<|end|>"}, {"special", true}}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"model",
       {{"type", "BPE"},
        {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}, {"c", 3}, {"abc", 4}}},
        {"merges", {"a b", "ab c"}}}}};
  /// Of each tensor: shape, slowest first. Values count up from 1/64, so that float16 and bfloat16
  /// hold them exactly.
  std::map<std::string, std::vector<int64_t>> shapes = {
      {"model.embed_tokens.weight", {7, 8}},
      {"model.norm.weight", {8}},
      {"lm_head.weight", {7, 8}},
      {"model.layers.0.input_layernorm.weight", {8}},
      {"model.layers.0.self_attn.q_proj.weight", {8, 8}},
      {"model.layers.0.self_attn.k_proj.weight", {4, 8}},
      {"model.layers.0.self_attn.v_proj.weight", {4, 8}},
      {"model.layers.0.self_attn.o_proj.weight", {8, 8}},
      {"model.layers.0.post_attention_layernorm.weight", {8}},
      {"model.layers.0.mlp.gate_proj.weight", {6, 8}},
      {"model.layers.0.mlp.up_proj.weight", {6, 8}},
      {"model.layers.0.mlp.down_proj.weight", {8, 6}}};
  std::string dtype = "F32";  // or "BF16"
  bool sharded = false;       // a file for the layer, one for the rest, and an index

  std::string path() const { return folder_.path(); }
  std::string file(const std::string& name) const { return folder_.file(name); }

  static std::vector<float> values(const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    std::vector<float> result(static_cast<size_t>(count));
    for (size_t i = 0; i < result.size(); ++i) result[i] = static_cast<float>(i + 1) / 64;
    return result;
  }

  void write() const {
    write_file(file("config.json"), config.dump());
    write_file(file("tokenizer.json"), tokenizer.dump());
    write_file(file("tokenizer_config.json"), R"({"eos_token": "<|end|>"})");
    if (!sharded) return write_part("model.safetensors", true, true);
    write_part("model-00001-of-00002.safetensors", true, false);
    write_part("model-00002-of-00002.safetensors", false, true);
    Json weight_map;
    for (const auto& [name, shape] : shapes) weight_map[name] = part_of(name);
    write_file(file("model.safetensors.index.json"), Json{{"weight_map", weight_map}}.dump());
  }

  static std::string part_of(const std::string& tensor) {
    return tensor.starts_with("model.layers.") ? "model-00001-of-00002.safetensors"
                                               : "model-00002-of-00002.safetensors";
  }

 private:
  std::vector<std::byte> stored(const std::vector<int64_t>& shape) const {
    std::vector<std::byte> bytes;
    for (const float value : values(shape)) {
      std::byte four[4];
      std::memcpy(four, &value, 4);
      const int first = dtype == "F32" ? 0 : 2;  // bfloat16: the upper half
      bytes.insert(bytes.end(), four + first, four + 4);
    }
    return bytes;
  }

  void write_part(const std::string& name, bool layers, bool rest) const {
    std::map<std::string, std::vector<std::byte>> data;
    std::vector<SafetensorsEntry> entries;
    for (const auto& [tensor, shape] : shapes)
      if (tensor.starts_with("model.layers.") ? layers : rest) {
        data[tensor] = stored(shape);
        entries.push_back({tensor, dtype, shape, data[tensor]});
      }
    write_safetensors(file(name), entries, {});
  }

  TemporaryFolder folder_;
};

}  // namespace nibble
