// The "t5" tokenizer of GGUF files: sentencepiece's Unigram.
//
// Characters are replaced as the character map says, spaces become U+2581 (one is put before the
// text, and runs of them are made one, where the metadata says so); of all ways to cut the text
// into tokens the one of the highest sum of scores is taken, the last token longest of equals. A
// character that no token is counts 10 less than the least score, and several in a row are one
// unknown token. Sources: Kudo 2018 (arXiv:1804.10959); llama.cpp src/llama-vocab.cpp, which has no
// byte fallback.
#pragma once

#include "model/tokenizer_characters.h"
#include "model/tokenizer_trie.h"
#include "model/tokenizer_vocabulary.h"

namespace nibble {

class UnigramTokenizer final : public VocabularyTokenizer {
 public:
  explicit UnigramTokenizer(const GgufMetadata& metadata);

 private:
  /// The best way to cut a text up to here, by its last token.
  struct Cut {
    double score;
    int32_t id, begin;
  };

  void encode_text(std::string_view text, bool starts, std::vector<int32_t>& ids) const override;
  std::string piece(int32_t id) const override;
  bool adds_space() const override { return adds_space_; }

  TokenTrie trie_of_texts() const;
  std::string normalize(std::string_view text) const;
  /// Calls visit(character) for what the text becomes, spaces still being spaces.
  template <class Visit>
  void map_characters(std::string_view text, const Visit& visit) const;
  void encode_word(std::string_view word, std::vector<Cut>& cuts, std::vector<int32_t>& ids) const;

  std::vector<double> scores_;
  double unknown_score_ = 0;
  CharacterMap characters_;
  TokenTrie trie_;
  bool adds_space_, merges_spaces_;
  bool words_are_independent_ = true;  // no token spans the place before a space
};

}  // namespace nibble
