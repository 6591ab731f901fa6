// tokenizer.model: the vocabulary of a sentencepiece model, out of its protobuf file (source:
// sentencepiece src/sentencepiece_model.proto). Of ModelProto are read: 1 pieces {1 piece, 2 score,
// 3 type}, 2 trainer_spec {3 model_type, 24 treat_whitespace_as_suffix, 35 byte_fallback} and 3
// normalizer_spec {2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5
// escape_whitespaces}; everything else is skipped. Read as if hostile.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct SentencePiece {
  std::string text;
  float score = 0;
  int64_t type = 1;  // normal, unknown, control, user defined, unused, byte: 1 to 6, as in GGUF
};

struct SentencePieceModel {
  std::vector<SentencePiece> pieces;
  int64_t model_type = 1;  // unigram, BPE, word, char: 1 to 4
  bool byte_fallback = false, spaces_are_suffixes = false;
  std::string character_map;  // model/tokenizer_characters.h; may be empty
  bool adds_space = true, merges_spaces = true, escapes_spaces = true;
};

/// Throws, naming the byte, for bytes that are no such message.
SentencePieceModel parse_sentencepiece(std::string_view bytes);

}  // namespace nibble
