// The "llama" tokenizer of GGUF files: sentencepiece BPE with byte fallback.
//
// Spaces become U+2581, one is put before text that starts a sequence or follows a special token;
// then, from single characters, the two neighbours whose joined text is the token of highest score
// are joined (the leftmost of equals), until no two form a token. A character that is no token
// becomes its bytes' tokens (<0x0A>). Source: llama.cpp src/llama-vocab.cpp.
//
// The sentencepiece library gives the same ids on valid UTF-8 only: it replaces what is not UTF-8
// by U+FFFD, where llama.cpp keeps the bytes, so the merge is written here.
#pragma once

#include <array>

#include "model/tokenizer_vocabulary.h"

namespace nibble {

class SpmTokenizer final : public VocabularyTokenizer {
 public:
  explicit SpmTokenizer(const GgufMetadata& metadata);

 private:
  struct Workspace;

  void encode_text(std::string_view text, bool starts, std::vector<int32_t>& ids) const override;
  std::string piece(int32_t id) const override;
  bool adds_space() const override { return adds_space_; }

  void encode_word(std::string_view word, Workspace& workspace, std::vector<int32_t>& ids) const;
  void try_merge(std::string_view word, int32_t left, int32_t right, Workspace& workspace) const;

  std::vector<float> scores_;
  std::array<int32_t, 256> byte_ids_;
  bool adds_space_ = true;
  bool words_are_independent_ = true;  // no token spans the place before a space
};

}  // namespace nibble
