// Special tokens, which of them are put around a text, and the chat template, out of
// tokenizer.json's post-processor, tokenizer_config.json and config.json, as tokenizer.ggml.* and
// tokenizer.chat_template keys (source: gguf-py gguf/vocab.py, SpecialVocab).
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "io/gguf.h"
#include "model/hf/tokenizer_files.h"

namespace nibble {

/// Ids that are not below num_tokens are left out.
GgufMetadata special_tokens(const TokenizerFiles& files, const nlohmann::json& config,
                            int64_t num_tokens);

/// tokenizer.chat_template, and where there are several, tokenizer.chat_template.<name> and
/// tokenizer.chat_templates. Of chat_template.jinja, chat_template.json and tokenizer_config.json.
GgufMetadata chat_templates(const TokenizerFiles& files);

}  // namespace nibble
