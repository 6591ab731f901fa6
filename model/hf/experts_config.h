// What config.json of a mixture of experts has and no other.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "model/llama_tensors.h"

namespace nibble {

/// Into `sizes`, whose feed-forward is read. Throws for what neither GGUF nor nibble has a key or a
/// layer for.
void read_experts_config(const nlohmann::json& config, const LlamaArchitecture& architecture,
                         LlamaSizes& sizes);

}  // namespace nibble
