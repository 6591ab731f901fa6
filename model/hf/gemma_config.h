// What config.json of a gemma2 or gemma3 has and no other: windows, caps, a scale of attention.
#pragma once

#include <nlohmann/json.hpp>

#include "model/hf/config.h"

namespace nibble {

/// Into `result`, whose sizes and rope are read. Throws for what neither GGUF nor nibble has a key
/// or a layer for.
void read_gemma_config(const nlohmann::json& config, HfConfig& result);

}  // namespace nibble
