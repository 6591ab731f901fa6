// A chat template's text cut into tokens, with the whitespace rules that transformers and llama.cpp
// set: trim_blocks and lstrip_blocks on, the template's last newline dropped.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble::jinja {

enum class TokenKind {
  kText,           // outside of all tags
  kVariableBegin,  // {{
  kVariableEnd,
  kBlockBegin,  // {%
  kBlockEnd,
  kName,
  kInteger,
  kFloat,
  kString,  // `text` is what it stands for
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;
  int line;
};

/// Throws Error with the line of what is no token or ends too early.
std::vector<Token> tokenize(std::string_view source);

}  // namespace nibble::jinja
