// A Hugging Face folder's tokenizer as tokenizer.* keys, by the rules of llama.cpp's converter:
// which files count, and what a family adds.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "io/gguf.h"
#include "model/hf/config.h"

namespace nibble {

/// json: config.json. pre: tokenizer.ggml.pre where the caller knows better, "" otherwise.
GgufMetadata hf_tokenizer_metadata(const std::string& folder, const HfConfig& config,
                                   const nlohmann::json& json, const std::string& pre);

}  // namespace nibble
