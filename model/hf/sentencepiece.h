// tokenizer.model: the vocabulary of a sentencepiece model, out of its protobuf file (source:
// sentencepiece src/sentencepiece_model.proto). Of ModelProto are read: 1 pieces {1 piece, 2 score,
// 3 type} and 2 trainer_spec {3 model_type}; everything else is skipped. Read as if hostile.
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
};

/// Throws, naming the byte, for bytes that are no such message.
SentencePieceModel parse_sentencepiece(std::string_view bytes);

}  // namespace nibble
