// Rotary positions in config.json, and as GGUF says them.
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
  std::string type = "default";  // default, linear, yarn, llama3 or longrope
  double base = 10000.0, factor = 1.0;
  int64_t dimensions = 0;        // elements of a head that are turned
  int64_t original_context = 0;  // yarn, llama3, longrope
  double low_frequency_factor = 1.0, high_frequency_factor = 4.0;  // llama3
  std::optional<double> beta_fast, beta_slow;                      // yarn, where given
  std::vector<float> long_divisors, short_divisors;                // longrope
  std::vector<int32_t> sections;  // qwen35's, of positions in images: four, or none given
  double window_base = 0;         // of layers with a window; 0: no layer has one of its own
};

/// Throws for a scaling that nibble or GGUF does not have.
HfRope read_hf_rope(const nlohmann::json& config, const LlamaArchitecture& architecture,
                    int64_t context_length, int64_t head_size);

/// Its keys; prefix: "<architecture>.rope.".
void add_rope_metadata(const HfRope& rope, const std::string& prefix, GgufMetadata& metadata);

/// What LongRoPE multiplies cosine and sine by (source: transformers modeling_rope_utils.py).
double long_rope_magnitude(const HfRope& rope, int64_t context_length);

/// A tensor of a GGUF file that no checkpoint has.
struct RopeTensor {
  std::string name;
  std::vector<float> divisors;  // of each pair's angle
};
std::vector<RopeTensor> hf_rope_tensors(const HfRope& rope);

/// rope_freqs.weight: what each pair's angle is divided by in Llama 3's scaling, in float32 steps.
/// Empty for other types. Source: transformers modeling_rope_utils.py.
std::vector<float> llama3_rope_divisors(const HfRope& rope);

}  // namespace nibble
