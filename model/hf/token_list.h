// The tokens of a Hugging Face folder by id, on their way to tokenizer.ggml.* keys, with what
// llama.cpp's converter makes of added tokens and of ids without one (source: llama.cpp
// conversion/base.py).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf.h"
#include "model/hf/tokenizer_files.h"
#include "model/tokenizer_vocabulary.h"

namespace nibble {

/// How added tokens are taken beside tokenizer.model: for most families, and for phi3.
enum class AddedTokens { kAll, kMissing, kAsMarked };

/// Whether a token is called as the one of a byte is ("<0x0A>").
bool is_byte_name(std::string_view text);

class TokenList {
 public:
  /// The score of ids that no file names; these are unused tokens "[PAD<id>]".
  static constexpr float kPaddingScore = -10000.0f;

  explicit TokenList(int64_t count);

  int64_t size() const { return static_cast<int64_t>(texts_.size()); }
  const std::string& text(int64_t id) const { return texts_[static_cast<size_t>(id)]; }
  TokenType type(int64_t id) const { return types_[static_cast<size_t>(id)]; }
  float score(int64_t id) const { return scores_[static_cast<size_t>(id)]; }

  void set(int64_t id, std::string text, TokenType type);
  void set_type(int64_t id, TokenType type) { types_[static_cast<size_t>(id)] = type; }
  void set_score(int64_t id, float score) { scores_[static_cast<size_t>(id)] = score; }

  /// Added tokens take the place of what stands at their id. kMissing: those that tokenizer.json
  /// alone knows, only where nothing stands. kAsMarked: control tokens are those that say so.
  void set_added(const TokenizerFiles& files, AddedTokens which);
  /// Tokens that tokenizer_config.json names ("bos_token") are control tokens.
  void set_named(const TokenizerFiles& files);

  /// tokenizer.ggml.model, pre, tokens, scores (where wanted) and token_type.
  GgufMetadata metadata(const char* model, const std::string& pre, bool with_scores) &&;

 private:
  std::vector<std::string> texts_;
  std::vector<float> scores_;
  std::vector<TokenType> types_;
};

}  // namespace nibble
