// How texts begin that a model writes itself (training/self_text.h).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "model/tokenizer.h"
#include "training/trainer.h"

namespace nibble {

struct SelfPrompt {
  std::vector<int32_t> ids;
  std::string text;            // that the ids stand for, special tokens left out; no chat data
  nlohmann::ordered_json row;  // of chat data: what the answer is added to
};

/// Of a text file each line, of a .jsonl file each row: its text, or of chat data its messages up
/// to the last that is not the assistant's. path "": one that is nothing but the token that begins
/// a text. Throws for a file without prompts, and for one of options.sequence_length tokens or
/// more.
std::vector<SelfPrompt> read_self_prompts(const std::string& path, const DataOptions& options,
                                          const GgufMetadata& metadata, const Tokenizer& tokenizer);

}  // namespace nibble
