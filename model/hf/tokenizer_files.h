// The files of a Hugging Face folder that say how its tokenizer works, and what several of them say
// of added tokens.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

struct TokenizerFiles {
  std::string folder;
  std::optional<nlohmann::json> tokenizer;  // tokenizer.json
  std::optional<nlohmann::json> config;     // tokenizer_config.json
  std::optional<nlohmann::json> added;      // added_tokens.json: {text: id}

  std::string path(const char* name) const { return folder + '/' + name; }
  /// Of tokenizer_config.json; "" where it does not say.
  std::string tokenizer_class() const;
};

TokenizerFiles read_tokenizer_files(const std::string& folder);

struct AddedToken {
  std::string text;
  bool special = false;       // a control token; else text that is always one token
  bool takes_spaces = false;  // beside it, in transformers
  bool only_in_tokenizer_json = false;
};

/// Of tokenizer_config.json, added_tokens.json and tokenizer.json, by id; the first that has an id
/// counts. Ids from 0 to num_tokens - 1 only: throws for others.
std::map<int64_t, AddedToken> read_added_tokens(const TokenizerFiles& files, int64_t num_tokens);

/// The text of a token in tokenizer_config.json ("bos_token"): a string, or an object with
/// "content". Nothing where it is missing.
std::optional<std::string> named_token(const TokenizerFiles& files, const std::string& key);

/// Control tokens that some models do not mark as special, told by their form (source: llama.cpp
/// conversion/base.py).
bool looks_special(std::string_view text);

/// "▁" in a token that stands for itself is a space.
std::string with_spaces(std::string text);

}  // namespace nibble
