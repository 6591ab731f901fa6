// What config.json of a Qwen3-Next or a Qwen3.5 has and no other: gated delta nets.
#pragma once

#include <nlohmann/json.hpp>

#include "model/hf/config.h"

namespace nibble {

/// Into `result`, whose sizes and rope are read. Throws for what neither GGUF nor nibble has a key
/// or a layer for.
void read_delta_net_config(const nlohmann::json& config, HfConfig& result);

}  // namespace nibble
