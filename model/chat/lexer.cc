#include "model/chat/lexer.h"

#include <algorithm>
#include <cstdint>

#include "base/error.h"
#include "model/tokenizer_pre.h"

namespace nibble::jinja {
namespace {

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool starts_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

/// Newlines of all kinds as one, and the last one dropped.
std::string normalized(std::string_view source) {
  std::string text;
  for (size_t i = 0; i < source.size(); ++i) {
    const bool pair = source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n';
    if (!pair) text += source[i] == '\r' ? '\n' : source[i];
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalized(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) lex_text();
    add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  std::string_view rest_from(size_t at) const {
    return at < source_.size() ? std::string_view(source_).substr(at) : std::string_view();
  }
  char peek_at(size_t at) const { return at < source_.size() ? source_[at] : '\0'; }
  std::string_view rest() const { return rest_from(at_); }
  bool sees(std::string_view text) const { return rest().starts_with(text); }
  char peek(size_t ahead = 0) const { return peek_at(at_ + ahead); }
  template <class... Args>
  [[noreturn]] void refuse(const Args&... args) const {
    fail("line ", line_, ": ", args...);
  }
  void add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  void advance(size_t count) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(at_ + count),
                                         '\n'));
    at_ += count;
  }
  void skip_space() {
    while (at_ < source_.size() && is_space(source_[at_])) advance(1);
  }

  /// Text up to the next tag, and that tag.
  void lex_text() {
    size_t tag = at_;
    do tag = source_.find('{', tag);
    while (tag != std::string::npos && ++tag < source_.size() &&
           std::string_view("{%#").find(source_[tag]) == std::string_view::npos);
    if (tag == std::string::npos || tag >= source_.size())
      return add_text(source_.size(), '\0', '\0');
    const size_t begin = tag - 1;
    const char kind = source_[tag];
    add_text(begin, kind, tag + 1 < source_.size() ? source_[tag + 1] : '\0');
    if (kind == '#') return skip_comment();
    if (kind == '%' && lex_raw()) return;
    lex_tag(kind == '%');
  }

  /// Text up to `end`, where a tag of this kind and whitespace sign follows.
  void add_text(size_t end, char kind, char sign) {
    const size_t count = end - at_;
    std::string text = source_.substr(at_, count);
    if (sign == '-' && kind != '\0') {
      while (!text.empty() && is_space(text.back())) text.pop_back();
    } else if (sign != '+' && (kind == '%' || kind == '#')) {
      const size_t newline = text.rfind('\n');
      const size_t line = newline == std::string::npos ? 0 : newline + 1;
      if ((line > 0 || at_line_start_) &&
          std::all_of(text.begin() + static_cast<std::ptrdiff_t>(line), text.end(), is_space))
        text.resize(line);
    }
    if (!text.empty()) add(TokenKind::kText, std::move(text));
    advance(count);
  }

  /// The end of a tag, of which the first newline goes with it where `trims`.
  void lex_end(std::string_view bracket, bool trims) {
    const char sign = peek();
    if (sign == '-' || sign == '+') advance(1);
    advance(bracket.size());
    const size_t before = at_;
    if (sign == '-')
      skip_space();
    else if (trims && sign != '+' && peek() == '\n')
      advance(1);
    at_line_start_ = at_ > before && source_[at_ - 1] == '\n';
  }
  /// Whether the tag ends here: its bracket, alone or after a sign.
  bool sees_end(std::string_view bracket) const {
    return sees(bracket) ||
           ((peek() == '-' || peek() == '+') && rest().substr(1).starts_with(bracket));
  }

  void skip_comment() {
    const size_t end = source_.find("#}", at_ + 2);
    if (end == std::string::npos) refuse("this comment has no end ('#}')");
    const bool sign = end > at_ + 2 && (source_[end - 1] == '-' || source_[end - 1] == '+');
    advance(end - (sign ? 1 : 0) - at_);
    lex_end("#}", true);
  }

  /// {% raw %} ... {% endraw %}; false, and nothing read, where another block begins.
  bool lex_raw() {
    const auto reads = [&](size_t at, std::string_view word) {
      at += source_[at + 2] == '-' || source_[at + 2] == '+' ? 3 : 2;
      while (at < source_.size() && is_space(source_[at])) ++at;
      if (!rest_from(at).starts_with(word)) return std::string::npos;
      at += word.size();
      while (at < source_.size() && is_space(source_[at])) ++at;
      const bool sign = at < source_.size() && (source_[at] == '-' || source_[at] == '+');
      return rest_from(at + (sign ? 1 : 0)).starts_with("%}") ? at : std::string::npos;
    };
    const size_t begun = reads(at_, "raw");
    if (begun == std::string::npos) return false;
    advance(begun - at_);
    lex_end("%}", true);
    for (size_t end = at_; (end = source_.find("{%", end)) != std::string::npos; ++end) {
      const size_t closed = reads(end, "endraw");
      if (closed == std::string::npos) continue;
      add_text(end, '%', peek_at(end + 2));
      advance(closed - at_);
      lex_end("%}", true);
      return true;
    }
    refuse("{% raw %} without {% endraw %}");
  }
  void lex_tag(bool block) {
    const std::string_view bracket = block ? "%}" : "}}";
    add(block ? TokenKind::kBlockBegin : TokenKind::kVariableBegin, "");
    advance(2);
    if (peek() == '-' || peek() == '+') advance(1);
    for (std::string open; skip_space(), open.size() > 0 || !sees_end(bracket);) {
      if (at_ == source_.size()) refuse("this tag has no end ('", bracket, "')");
      lex_token(open);
    }
    add(block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, "");
    lex_end(bracket, block);
  }

  /// `open`: the brackets that are not closed yet, in which "}}" ends no tag.
  void lex_token(std::string& open) {
    const char c = peek();
    if (starts_name(c)) return lex_name();
    if (is_digit(c)) return lex_number();
    if (c == '\'' || c == '"') return lex_string(c);
    constexpr std::string_view kSingles = "+-*/%~<>=()[]{}.,:|";
    size_t size = kSingles.find(c) != std::string_view::npos ? 1 : 0;
    for (const std::string_view pair : {"**", "//", "==", "!=", "<=", ">="})
      if (sees(pair)) size = 2;
    if (size == 0) refuse("'", c, "' is no part of an expression");
    if (size == 1 && std::string_view("([{").find(c) != std::string_view::npos) open += c;
    if (size == 1 && std::string_view(")]}").find(c) != std::string_view::npos) {
      if (open.empty()) refuse("'", c, "' closes nothing");
      open.pop_back();
    }
    add(TokenKind::kOperator, std::string(rest().substr(0, size)));
    advance(size);
  }

  void lex_name() {
    size_t size = 0;
    while (starts_name(peek(size)) || is_digit(peek(size))) ++size;
    add(TokenKind::kName, std::string(rest().substr(0, size)));
    advance(size);
  }

  void lex_number() {
    std::string text;
    bool floats = false;
    const auto digits = [&] {
      for (; is_digit(peek()) || (peek() == '_' && is_digit(peek(1))); advance(1))
        if (peek() != '_') text += peek();
    };
    digits();
    if (peek() == '.' && is_digit(peek(1))) {
      floats = true;
      text += '.';
      advance(1);
      digits();
    }
    const size_t sign = peek(1) == '+' || peek(1) == '-' ? 1 : 0;
    if ((peek() == 'e' || peek() == 'E') && is_digit(peek(1 + sign))) {
      floats = true;
      text += rest().substr(0, 1 + sign);
      advance(1 + sign);
      digits();
    }
    add(floats ? TokenKind::kFloat : TokenKind::kInteger, std::move(text));
  }

  void lex_string(char quote) {
    advance(1);
    std::string text;
    while (peek() != quote) {
      if (at_ >= source_.size()) refuse("this string has no end");
      if (peek() == '\\')
        lex_escape(text);
      else
        text += peek(), advance(1);
    }
    add(TokenKind::kString, std::move(text));
    advance(1);
  }

  void lex_escape(std::string& text) {
    constexpr std::string_view kNames = "nrtbfav\\'\"", kMeant = "\n\r\t\b\f\a\v\\'\"";
    static_assert(kNames.size() == kMeant.size());
    const char name = peek(1);
    const size_t digits = name == 'x' ? 2 : name == 'u' ? 4 : name == 'U' ? 8 : 0;
    const size_t known = kNames.find(name);
    if (digits > 0) {
      uint32_t point = 0;
      for (size_t i = 0; i < digits; ++i) point = point * 16 + hexadecimal_digit(peek(2 + i));
      if (point > 0x10ffff) refuse("an escaped character beyond Unicode");
      append_utf8(point, text);
      advance(2 + digits);
    } else if (known != std::string_view::npos && at_ + 1 < source_.size()) {
      text += kMeant[known];
      advance(2);
    } else {
      text += '\\';
      advance(1);
    }
  }
  uint32_t hexadecimal_digit(char c) const {
    if (is_digit(c)) return static_cast<uint32_t>(c - '0');
    const char lower = static_cast<char>(c | 0x20);
    if (lower < 'a' || lower > 'f') refuse("an escape wants hexadecimal digits, found '", c, "'");
    return static_cast<uint32_t>(lower - 'a' + 10);
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace nibble::jinja
