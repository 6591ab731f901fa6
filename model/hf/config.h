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
#include "model/llama_tensors.h"

namespace nibble {

struct HfRope {
  std::string type = "default";  // default, linear, yarn or llama3
  double base = 10000.0, factor = 1.0;
  int64_t original_context = 0;                                    // yarn, llama3
  double low_frequency_factor = 1.0, high_frequency_factor = 4.0;  // llama3
  std::optional<double> beta_fast, beta_slow;                      // yarn, where given
};

struct HfConfig {
  std::string family;  // architectures[0]: "LlamaForCausalLM"
  const LlamaArchitecture* architecture = nullptr;
  LlamaSizes sizes;
  int64_t context_length = 0;
  double norm_epsilon = 0;
  bool says_head_size = false;  // its GGUF has the keys of heads' lengths
  bool tied = false;            // no output matrix of its own
  bool attention_biases = false, feed_forward_biases = false;
  HfRope rope;
  /// Positions that gemma3's layers with a window attend to, 0: there are none; their rope base.
  int64_t window = 0;
  double window_rope_base = 0;
};

/// Throws for a family that nibble does not have, and for settings that it or GGUF does not know.
HfConfig read_hf_config(const nlohmann::json& config);

/// The keys <architecture>.* and general.file_type, in the order of llama.cpp's converter.
GgufMetadata hf_model_metadata(const HfConfig& config, uint32_t file_type);

/// rope_freqs.weight: what each pair's angle is divided by in Llama 3's scaling, in float32 steps.
/// Empty for other types. Source: transformers modeling_rope_utils.py.
std::vector<float> llama3_rope_divisors(const HfConfig& config);

}  // namespace nibble
