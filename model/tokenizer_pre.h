// Pre-tokenizers of byte-level BPE: regular expressions that cut text into words, which BPE never
// joins again. Each expression cuts the pieces that the one before left; what it does not match
// stays as a piece.
//
// The expressions are each model's own (its tokenizer.json), under the names and with the
// simplifications of llama.cpp (src/llama-vocab.cpp, src/unicode.cpp). Left out are those that it
// implements in code of its own (kimi-k2, afmoe, tiny_aya, superbpe), and those of embedding
// models. What is a letter is up to PCRE2's Unicode tables: characters newer than they are may be
// cut in other places.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct PreTokenizer {
  std::vector<std::string> patterns;  // PCRE2
  bool ignore_merges = false;  // a word that is a token is that token, whatever the merges say
  bool add_bos = false;        // where the metadata is silent
  bool has_bos = true;         // llama.cpp's default BOS id holds
};

/// By tokenizer.ggml.pre. Throws, with the nearest name, when there is none.
const PreTokenizer& find_pre_tokenizer(const std::string& name);

/// Compiled expressions. Safe to use from several threads.
class WordSplitter {
 public:
  explicit WordSplitter(const std::vector<std::string>& patterns);
  ~WordSplitter();
  WordSplitter(const WordSplitter&) = delete;
  WordSplitter& operator=(const WordSplitter&) = delete;

  /// The lengths in bytes of the words that text, as repair_utf8() returns it, falls into.
  std::vector<size_t> split(std::string_view text) const;

 private:
  struct Pattern;
  std::vector<Pattern> patterns_;
};

/// Text as llama.cpp reads it: every byte that begins no UTF-8 sequence becomes U+FFFD; overlong
/// forms are shortened, surrogates stay. The result can be cut by WordSplitter.
std::string repair_utf8(std::string_view text);

/// The UTF-8 sequence at the start of non-empty text; length 0 when it begins none.
struct CodePoint {
  uint32_t value = 0;
  size_t length = 0;
};
CodePoint read_code_point(std::string_view text);
/// Appends a code point up to U+10FFFF.
void append_utf8(uint32_t code_point, std::string& text);

}  // namespace nibble
