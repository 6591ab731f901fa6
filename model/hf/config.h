// config.json of a Hugging Face folder, as transformers 4 and 5 write it (rope_scaling and
// rope_theta, or rope_parameters): which family the model is of, its sizes, its rotary positions.
// What a GGUF file could not say is refused, not dropped.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "model/hf/rope_config.h"
#include "model/llama_tensors.h"

namespace nibble {

struct HfConfig {
  std::string family;  // architectures[0]: "LlamaForCausalLM"
  const LlamaArchitecture* architecture = nullptr;
  LlamaSizes sizes;
  int64_t context_length = 0;
  double norm_epsilon = 0;
  /// llama.cpp's converter takes it for a kind of llama: more keys, and the llama's tokenizers.
  bool is_llama = false;
  bool says_head_size = false;  // its GGUF has the keys of heads' lengths
  bool tied = false;            // no output matrix of its own
  bool attention_biases = false, feed_forward_biases = false;
  HfRope rope;
  /// Positions that layers with a window attend to, 0: there are none. Of phi3, what its file says.
  int64_t window = 0;
  double attention_cap = 0, logit_cap = 0;  // of scores and of logits; 0: none
  /// granite's multipliers; logits are divided by theirs.
  double attention_scale = 1, embedding_scale = 1, residual_scale = 1, logit_scale = 1;
  /// That predict further tokens and are converted too.
  int64_t mtp_layers = 0;
  /// qwen35's: each such layer attends, where sizes.delta.layers says nothing else.
  int64_t full_attention_interval = 0;
};

/// "LlamaForCausalLM, MistralForCausalLM, ...": the families that nibble has.
std::string hf_family_names();

/// Throws for a family that nibble does not have, and for settings that it or GGUF does not know.
HfConfig read_hf_config(const nlohmann::json& config);

/// What a tensor of a checkpoint would be called if the language model were all there is:
/// "language_model.model.norm.weight" is "model.norm.weight". "" for what belongs to another part.
std::string text_tensor_name(const std::string& name);

/// The way back, in the style that a checkpoint of several parts has: `inner` where its language
/// model is "model.language_model.*" and "lm_head.weight", else "language_model.*".
std::string outer_tensor_name(const std::string& text_name, bool inner);

/// The keys <architecture>.* and general.file_type, in the order of llama.cpp's converter.
GgufMetadata hf_model_metadata(const HfConfig& config, uint32_t file_type);

}  // namespace nibble
