// Normalizers of a tokenizer.json that replace characters, compiled into the character map that
// GGUF can hold (model/tokenizer_characters.h).
//
// A map knows single characters, and the sequences that it lists: the canonical decompositions of
// every character, whole and in part, kana with voicing marks of either width, and the texts that a
// "Replace" looks for. Combining marks in another order than the canonical one stay as they are,
// where the normal forms sort them. Characters are those of utf8proc's version of Unicode.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace nibble {

class Normalizers {
 public:
  /// Takes a step of type NFC, NFD, NFKC, NFKD, Nmt, Lowercase, Replace (of a text) or
  /// WhitespaceSplit; false for others.
  bool add(const nlohmann::json& step);
  bool empty() const { return steps_.empty(); }
  /// tokenizer.ggml.precompiled_charsmap; empty where nothing is replaced.
  std::string character_map() const;

 private:
  std::string apply(std::string text) const;
  std::vector<std::string> sources() const;

  std::vector<std::function<std::string(const std::string&)>> steps_;
  std::vector<std::string> replaced_;
};

}  // namespace nibble
