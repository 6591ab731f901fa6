// The vocabulary of a Hugging Face folder as tokenizer.ggml.* keys: byte-level BPE (tokenizer.json,
// or vocab.json and merges.txt) as "gpt2"; sentencepiece BPE (tokenizer.model, or a tokenizer.json
// with byte fallback) as "llama". Source: llama.cpp conversion/base.py.
#pragma once

#include <cstdint>
#include <string>

#include "io/gguf.h"
#include "model/hf/token_list.h"
#include "model/hf/tokenizer_files.h"

namespace nibble {

/// tokenizer.ggml.model, pre, tokens, token_type and merges. pre: tokenizer.ggml.pre where the
/// caller knows better; "" otherwise.
GgufMetadata bpe_vocabulary(const TokenizerFiles& files, int64_t vocab_size,
                            const std::string& pre);

/// tokenizer.ggml.model, pre, tokens, scores and token_type, out of tokenizer.model.
GgufMetadata sentencepiece_vocabulary(const TokenizerFiles& files, int64_t vocab_size,
                                      AddedTokens added);

/// The same out of a tokenizer.json, in which the merges take the place of scores.
GgufMetadata merged_sentencepiece_vocabulary(const TokenizerFiles& files, int64_t vocab_size);

/// Whether tokenizer.json is of the latter kind.
bool is_merged_sentencepiece(const nlohmann::json& tokenizer);

}  // namespace nibble
