// A chat template's tokens as its parsers take them, with the line of what they refuse.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "model/chat/lexer.h"

namespace nibble::jinja {

/// Of brackets, blocks and operators in one another.
constexpr int kMaxDepth = 200;

class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  /// Counts a level of nesting while it lives.
  class Level {
   public:
    explicit Level(TokenStream& stream) : stream_(stream) {
      if (++stream_.depth_ > kMaxDepth) stream_.refuse("nested more than ", kMaxDepth, " deep");
    }
    ~Level() { --stream_.depth_; }

   private:
    TokenStream& stream_;
  };

  const Token& token(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  Token take() {
    const Token taken = token();
    if (at_ + 1 < tokens_.size()) ++at_;
    return taken;
  }
  template <class... Args>
  [[noreturn]] void refuse(const Args&... args) const {
    fail("line ", token().line, ": ", args...);
  }
  bool sees(TokenKind kind, std::string_view text, size_t ahead = 0) const {
    return token(ahead).kind == kind && token(ahead).text == text;
  }
  bool sees_operator(std::string_view text) const { return sees(TokenKind::kOperator, text); }
  bool sees_word(std::string_view text) const { return sees(TokenKind::kName, text); }
  bool skip_operator(std::string_view text) {
    const bool found = sees_operator(text);
    if (found) take();
    return found;
  }
  bool skip_word(std::string_view text) {
    const bool found = sees_word(text);
    if (found) take();
    return found;
  }
  std::string describe() const {
    switch (token().kind) {
      case TokenKind::kBlockEnd:
      case TokenKind::kVariableEnd:
        return "the end of the tag";
      case TokenKind::kEnd:
        return "the end of the template";
      case TokenKind::kString:
        return "a string";
      default:
        return '\'' + token().text + '\'';
    }
  }
  void expect(TokenKind kind, std::string_view what) {
    if (token().kind != kind) refuse("wants ", what, ", found ", describe());
    take();
  }
  void expect_operator(std::string_view text) {
    if (!skip_operator(text)) refuse("wants '", text, "', found ", describe());
  }
  std::string expect_name() {
    if (token().kind != TokenKind::kName) refuse("wants a name, found ", describe());
    return take().text;
  }
  void expect_block_end() { expect(TokenKind::kBlockEnd, "'%}'"); }

  /// A node of the line that is read.
  template <class T>
  std::unique_ptr<T> make() const {
    auto node = std::make_unique<T>();
    node->line = token().line;
    return node;
  }

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace nibble::jinja
