// Unigram tokenizers of Hugging Face folders as the tokenizer.ggml.* keys of llama.cpp's "t5"
// tokenizer (source: llama.cpp conversion/t5.py, which writes these of T5 models only: of others
// it refuses a tokenizer.json and takes a tokenizer.model for sentencepiece's BPE).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "io/gguf.h"
#include "model/hf/token_list.h"
#include "model/hf/tokenizer_files.h"

namespace nibble {

/// What is done with text and with characters that are no token.
struct UnigramRules {
  std::string character_map;  // model/tokenizer_characters.h; may be empty
  bool adds_space = false;    // before the text
  bool merges_spaces = false;
  bool byte_fallback = false;
};

/// Keys of the tokens, one of which is the unknown one, and of the rules.
GgufMetadata unigram_metadata(TokenList tokens, UnigramRules rules);

/// Whether tokenizer.json holds a Unigram tokenizer.
bool is_unigram(const nlohmann::json& tokenizer);

/// Of such a tokenizer.json. Throws, by name, for normalizers and pre-tokenizers that GGUF cannot
/// say.
GgufMetadata unigram_vocabulary(const TokenizerFiles& files, int64_t vocab_size);

}  // namespace nibble
