#include "model/tokenizer_spaces.h"

namespace nibble {
namespace {

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t at = 0;
  for (size_t found; (found = text.find(from, at)) != std::string_view::npos;
       at = found + from.size())
    out.append(text, at, found - at).append(to);
  return out.append(text, at);
}

}  // namespace

size_t character_length(char first) {
  const auto byte = static_cast<unsigned char>(first);
  return byte < 0xc0 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

std::string escape_spaces(std::string_view text) { return replace_all(text, " ", kSpaceMark); }
std::string unescape_spaces(std::string_view text) { return replace_all(text, kSpaceMark, " "); }

bool has_inner_space(std::string_view text) {
  for (size_t at = text.find(kSpaceMark); at != std::string_view::npos;
       at = text.find(kSpaceMark, at + 1))
    if (at > 0 && !text.substr(0, at).ends_with(kSpaceMark)) return true;
  return false;
}

std::vector<std::string_view> split_at_spaces(std::string_view text) {
  std::vector<std::string_view> words;
  size_t begin = 0;
  bool after_space = true;
  for (size_t at = 0; at < text.size(); at += character_length(text[at])) {
    const bool space = text.substr(at, kSpaceMark.size()) == kSpaceMark;
    if (space && !after_space) {
      words.push_back(text.substr(begin, at - begin));
      begin = at;
    }
    after_space = space;
  }
  words.push_back(text.substr(begin));
  return words;
}

}  // namespace nibble
