#include "model/chat/text_functions.h"

#include <algorithm>
#include <set>
#include <string_view>

#include "base/error.h"

namespace nibble::jinja {
namespace {

/// Python's str.isspace().
bool is_space(const std::string& character) {
  static const std::set<std::string_view> kWide = {"\u0085", "\u00a0", "\u1680", "\u2000", "\u2001",
                                                   "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
                                                   "\u2007", "\u2008", "\u2009", "\u200a", "\u2028",
                                                   "\u2029", "\u202f", "\u205f", "\u3000"};
  const char c = character[0];
  if (character.size() == 1)
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f);
  return kWide.contains(character);
}

std::string join(const std::vector<std::string>& all, size_t begin, size_t end) {
  std::string text;
  for (size_t i = begin; i < end; ++i) text += all[i];
  return text;
}

/// Words between runs of whitespace; when `count` is reached, the last (or first) takes the rest as
/// it is.
List split_words(const std::string& text, int64_t count, bool from_right) {
  std::vector<std::string> all = characters(text);
  if (from_right) std::reverse(all.begin(), all.end());
  List words;
  size_t at = 0;
  const auto skip = [&](bool space) {
    while (at < all.size() && is_space(all[at]) == space) ++at;
  };
  for (skip(true); at < all.size(); skip(true)) {
    const size_t begin = at;
    if (count-- == 0)
      at = all.size();
    else
      skip(false);
    std::vector<std::string> word(all.begin() + static_cast<std::ptrdiff_t>(begin),
                                  all.begin() + static_cast<std::ptrdiff_t>(at));
    if (from_right) std::reverse(word.begin(), word.end());
    words.emplace_back(join(word, 0, word.size()));
  }
  if (from_right) std::reverse(words.begin(), words.end());
  return words;
}

char change_case(char c, bool to_upper) {
  // Letters beyond ASCII have rules of their own: not silently left as they are.
  check(static_cast<unsigned char>(c) < 0x80, "letters beyond ASCII cannot change their case here");
  const bool changes = to_upper ? c >= 'a' && c <= 'z' : c >= 'A' && c <= 'Z';
  return static_cast<char>(changes ? c ^ 0x20 : c);
}

}  // namespace

std::string strip(const std::string& text, const std::optional<std::string>& of, bool left,
                  bool right) {
  const std::vector<std::string> all = characters(text), stripped = characters(of.value_or(""));
  const auto goes = [&](const std::string& character) {
    return of ? std::find(stripped.begin(), stripped.end(), character) != stripped.end()
              : is_space(character);
  };
  size_t begin = 0, end = all.size();
  while (left && begin < end && goes(all[begin])) ++begin;
  while (right && end > begin && goes(all[end - 1])) --end;
  return join(all, begin, end);
}

List split(const std::string& text, const std::optional<std::string>& separator, int64_t count,
           bool from_right) {
  if (!separator) return split_words(text, count, from_right);
  check(!separator->empty(), "split: the separator is empty");
  List parts;
  std::string rest = text;
  for (; count != 0; --count) {
    const size_t at = from_right ? rest.rfind(*separator) : rest.find(*separator);
    if (at == std::string::npos) break;
    const size_t after = at + separator->size();
    parts.emplace_back(from_right ? rest.substr(after) : rest.substr(0, at));
    rest = from_right ? rest.substr(0, at) : rest.substr(after);
  }
  parts.emplace_back(std::move(rest));
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::string replace(const std::string& text, const std::string& from, const std::string& to,
                    int64_t count) {
  check(!from.empty(), "replace: the text to replace is empty");
  std::string out;
  size_t at = 0;
  for (size_t found; count != 0 && (found = text.find(from, at)) != std::string::npos; --count) {
    out.append(text, at, found - at).append(to);
    at = found + from.size();
  }
  return out.append(text, at);
}

std::string lower(const std::string& text) {
  std::string out;
  for (const char c : text) out += change_case(c, false);
  return out;
}

std::string upper(const std::string& text) {
  std::string out;
  for (const char c : text) out += change_case(c, true);
  return out;
}

std::string capitalize(const std::string& text) {
  std::string out = lower(text);
  if (!out.empty()) out[0] = change_case(out[0], true);
  return out;
}

std::string title(const std::string& text) {
  std::string out = lower(text);
  bool inside = false;
  for (char& c : out) {
    const bool letter = c >= 'a' && c <= 'z';
    if (letter && !inside) c = change_case(c, true);
    inside = letter;
  }
  return out;
}

}  // namespace nibble::jinja
