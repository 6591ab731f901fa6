// What every tokenizer in a GGUF file has in common: the token list with its types, the special
// tokens, and the outline of encoding (special tokens are cut out first, the text between them is
// tokenized piece by piece).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "io/gguf.h"
#include "model/tokenizer.h"

namespace nibble {

/// tokenizer.ggml.token_type (source: llama.cpp include/llama.h). Any other number counts as
/// kUndefined.
enum class TokenType : int32_t {
  kUndefined = 0,
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

/// What holds where the metadata is silent; llama.cpp's defaults differ by tokenizer. Ids beyond
/// the vocabulary count as none.
struct VocabularyDefaults {
  int32_t bos = -1, eos = -1, unknown = -1;
  bool add_bos = false, add_eos = false;
};

/// The tokenizer.ggml.* keys that all tokenizers share. Throws when the token list is missing or
/// has a token twice, when types are not one per token, and when a special token's id is outside
/// the list.
class Vocabulary {
 public:
  Vocabulary(const GgufMetadata& metadata, const VocabularyDefaults& defaults);
  Vocabulary(const Vocabulary&) = delete;  // ids_ points into texts_
  Vocabulary& operator=(const Vocabulary&) = delete;

  int32_t size() const { return static_cast<int32_t>(texts_.size()); }
  const std::string& text(int32_t id) const { return texts_[id]; }
  TokenType type(int32_t id) const { return types_[id]; }
  /// The id of the token whose text this is, or -1.
  int32_t find(std::string_view text) const;
  /// The byte that a byte token ("<0x0A>") stands for, as a string; "" when the text has another
  /// form.
  std::string byte_of(int32_t id) const;

  int32_t bos() const { return bos_; }
  int32_t eos() const { return eos_; }
  int32_t unknown() const { return unknown_; }
  bool add_bos() const { return add_bos_; }
  bool add_eos() const { return add_eos_; }
  bool is_end_of_generation(int32_t id) const { return end_of_generation_.contains(id); }

  /// A stretch of text, or (id >= 0) a special token found in it.
  struct Fragment {
    std::string_view text;
    int32_t id = -1;
  };
  /// Cuts special tokens out, longest first: user-defined ones always, control and unknown ones
  /// only when parse_special. Text loses the spaces at its start after some tokens of Phi-3.
  std::vector<Fragment> split_special(std::string_view text, bool parse_special) const;

 private:
  void read_types(const GgufMetadata& metadata);
  void read_special(const GgufMetadata& metadata, const VocabularyDefaults& defaults);
  /// llama.cpp's exceptions, by the texts of tokens and by the model's name.
  void set_exceptions(const GgufMetadata& metadata);
  /// The id under tokenizer.ggml.<name>_token_id, or `otherwise`.
  int32_t special_id(const GgufMetadata& metadata, std::string_view name, int32_t otherwise) const;

  std::vector<std::string> texts_;
  std::vector<TokenType> types_;
  std::unordered_map<std::string_view, int32_t> ids_;
  std::vector<int32_t> special_;  // longest text first
  std::unordered_set<int32_t> end_of_generation_;
  std::unordered_set<int32_t> strips_spaces_;  // that follow it
  int32_t bos_ = -1, eos_ = -1, unknown_ = -1;
  bool add_bos_ = false, add_eos_ = false;
};

/// tokenizer.ggml.scores: log-probabilities or ranks, by id. Throws when they are not one per
/// token, or not numbers.
std::vector<float> read_scores(const GgufMetadata& metadata, const Vocabulary& vocabulary);

/// A tokenizer over a Vocabulary; what is left to a kind of tokenizer is the text between special
/// tokens.
class VocabularyTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text, bool add_special,
                              bool parse_special) const final;
  std::string decode(const std::vector<int32_t>& ids, bool special = false) const final;
  std::vector<size_t> byte_ends(const std::vector<int32_t>& ids) const final;
  int64_t vocab_size() const final { return vocabulary_.size(); }
  int32_t bos() const final { return vocabulary_.bos(); }
  int32_t eos() const final { return vocabulary_.eos(); }
  bool add_bos() const final { return vocabulary_.add_bos(); }
  bool is_end_of_generation(int32_t id) const final { return vocabulary_.is_end_of_generation(id); }

 protected:
  VocabularyTokenizer(const GgufMetadata& metadata, const VocabularyDefaults& defaults)
      : vocabulary_(metadata, defaults) {}
  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  /// decode(), telling `ends` where each id ends.
  std::string decode(const std::vector<int32_t>& ids, bool special,
                     std::vector<size_t>& ends) const;
  /// Appends the ids of text that holds no special token. `starts`: nothing or a special token
  /// precedes it.
  virtual void encode_text(std::string_view text, bool starts, std::vector<int32_t>& ids) const = 0;
  /// The bytes of a token that is not special.
  virtual std::string piece(int32_t id) const = 0;
  /// Whether encode_text() puts a space before text that `starts`, which decode() takes away again.
  virtual bool adds_space() const { return false; }

  Vocabulary vocabulary_;
};

}  // namespace nibble
