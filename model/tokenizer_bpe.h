// The "gpt2" tokenizer of GGUF files: byte-level BPE.
//
// Text is cut into words (model/tokenizer_pre.h). In a word every byte is a symbol; then the two
// neighbours whose merge comes first in tokenizer.ggml.merges are merged (the leftmost of equals),
// until no two have a merge. Token texts spell bytes in GPT-2's alphabet: printable Latin-1
// characters stand for themselves, the other 68 bytes for U+0100 upwards. Sources: GPT-2's
// encoder.py; llama.cpp src/llama-vocab.cpp.
#pragma once

#include <array>

#include "model/tokenizer_pre.h"
#include "model/tokenizer_vocabulary.h"

namespace nibble {

class BpeTokenizer final : public VocabularyTokenizer {
 public:
  explicit BpeTokenizer(const GgufMetadata& metadata);

 private:
  struct Workspace;
  struct Merge {
    int32_t rank, result;
  };

  BpeTokenizer(const GgufMetadata& metadata, const PreTokenizer& rules);
  void encode_text(std::string_view text, bool starts, std::vector<int32_t>& ids) const override;
  std::string piece(int32_t id) const override;

  void read_merges(const std::vector<std::string>& merges);
  void encode_word(std::string_view word, Workspace& workspace, std::vector<int32_t>& ids) const;
  void try_merge(int32_t left, int32_t right, Workspace& workspace) const;
  void append_symbol(int32_t symbol, std::vector<int32_t>& ids) const;

  // Symbols are numbered: first the tokens, by id, then texts that occur in merges only.
  std::unordered_map<uint64_t, Merge> merges_;  // by left << 32 | right
  std::vector<std::string> other_symbols_;      // texts of the symbols that are no tokens
  std::array<int32_t, 256> byte_symbols_;
  WordSplitter splitter_;
  bool ignore_merges_;
};

}  // namespace nibble
