// Which layers of config.json attend to a window only.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

namespace nibble {

/// Throws unless it is all but each one of `period`, which is what GGUF files of such architectures
/// have.
void check_window_layers(const nlohmann::json& config, int64_t period, int64_t num_layers);

}  // namespace nibble
