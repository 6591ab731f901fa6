#include "model/tokenizer_unigram.h"

#include <algorithm>
#include <limits>
#include <variant>

#include "base/error.h"
#include "model/tokenizer_pre.h"
#include "model/tokenizer_spaces.h"
#include "model/word_cache.h"

namespace nibble {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD, for bytes that are not UTF-8
constexpr float kUnknownPenalty = 10;

/// Whether text can become this token.
bool is_text(const Vocabulary& tokens, int32_t id) {
  const TokenType type = id < 0 ? TokenType::kUndefined : tokens.type(id);
  return type == TokenType::kNormal || type == TokenType::kUserDefined ||
         type == TokenType::kUnused;
}

CharacterMap read_character_map(const GgufMetadata& metadata) {
  const char* key = "tokenizer.ggml.precompiled_charsmap";
  const GgufValue* value = metadata.find(key);
  if (!value) return {};
  return with_frame(concat("metadata key '", key, "'"), [&] {
    const auto* array = std::get_if<GgufArray>(value);
    check(array, "wants an array of bytes, found ", value_type_name(value_type(*value)));
    if (const auto* bytes = std::get_if<std::vector<uint8_t>>(&array->values))
      return CharacterMap(*bytes);
    const auto* bytes = std::get_if<std::vector<int8_t>>(&array->values);
    check(bytes, "wants an array of bytes, found one of ", value_type_name(array->type));
    return CharacterMap(std::vector<uint8_t>(bytes->begin(), bytes->end()));
  });
}

}  // namespace

UnigramTokenizer::UnigramTokenizer(const GgufMetadata& metadata)
    : VocabularyTokenizer(metadata, {.eos = 1, .unknown = 2, .add_eos = true}),
      characters_(read_character_map(metadata)),
      trie_(trie_of_texts()),
      adds_space_(metadata.get_bool_or("tokenizer.ggml.add_space_prefix", false)),
      merges_spaces_(metadata.get_bool_or("tokenizer.ggml.remove_extra_whitespaces", false)) {
  const Vocabulary& tokens = vocabulary();
  check(tokens.unknown() >= 0, "no unknown token");
  const std::vector<float> scores = read_scores(metadata, tokens);
  // Unknown tokens in a row are one: words are on their own where none begins with one.
  words_are_independent_ = is_text(tokens, tokens.find(kSpaceMark));
  float least = std::numeric_limits<float>::max();
  for (int32_t id = 0; id < tokens.size(); ++id) {
    if (tokens.type(id) == TokenType::kNormal) least = std::min(least, scores[id]);
    scores_.push_back(tokens.type(id) == TokenType::kUserDefined ? 0 : scores[id]);
    words_are_independent_ = words_are_independent_ && !has_inner_space(tokens.text(id));
  }
  unknown_score_ = least - kUnknownPenalty;
}

/// Of the tokens that text can become.
TokenTrie UnigramTokenizer::trie_of_texts() const {
  const Vocabulary& tokens = vocabulary();
  std::vector<std::pair<std::string_view, int32_t>> texts;
  for (int32_t id = 0; id < tokens.size(); ++id)
    if (is_text(tokens, id)) texts.emplace_back(tokens.text(id), id);
  return TokenTrie(std::move(texts));
}

std::string UnigramTokenizer::piece(int32_t id) const {
  switch (vocabulary().type(id)) {
    case TokenType::kNormal:
      return unescape_spaces(vocabulary().text(id));
    case TokenType::kByte:
      return vocabulary().byte_of(id);
    default:
      return "";
  }
}

template <class Visit>
void UnigramTokenizer::map_characters(std::string_view text, const Visit& visit) const {
  while (!text.empty()) {
    CharacterMap::Match match = characters_.longest_prefix(text);
    if (match.length == 0) {
      match.length = read_code_point(text).length;
      match.replacement = text.substr(0, match.length);
    }
    if (match.length == 0) match = {1, kReplacement};
    for (const char c : match.replacement) visit(c);
    text.remove_prefix(match.length);
  }
}

std::string UnigramTokenizer::normalize(std::string_view text) const {
  std::string normalized;
  normalized.reserve(text.size() + text.size() / 4);
  bool has_text = false, in_word = false;
  map_characters(text, [&](char c) {
    if (c != ' ') {
      if (!in_word && (merges_spaces_ || (adds_space_ && !has_text))) normalized += kSpaceMark;
      has_text = true;
      normalized += c;
    } else if (!merges_spaces_) {
      normalized += kSpaceMark;
    }
    in_word = c != ' ';
  });
  return normalized;
}

void UnigramTokenizer::encode_text(std::string_view text, bool /*starts*/,
                                   std::vector<int32_t>& ids) const {
  const std::string normalized = normalize(text);
  if (normalized.empty()) return;
  check(normalized.size() < std::numeric_limits<int32_t>::max(), "a text of ", normalized.size(),
        " bytes is too long to tokenize in one piece");
  std::vector<std::string_view> words = {normalized};
  if (words_are_independent_) words = split_at_spaces(normalized);
  WordCache cache;
  std::vector<Cut> cuts;
  for (const std::string_view word : words)
    cache.append(word, ids, [&] { encode_word(word, cuts, ids); });
}

void UnigramTokenizer::encode_word(std::string_view word, std::vector<Cut>& cuts,
                                   std::vector<int32_t>& ids) const {
  const int32_t unknown = vocabulary().unknown();
  cuts.assign(word.size() + 1, {-std::numeric_limits<double>::max(), unknown, 0});
  cuts[0].score = 0;
  for (size_t begin = 0; begin < word.size();) {
    const size_t character = std::min(character_length(word[begin]), word.size() - begin);
    const auto offer = [&](int32_t id, size_t size, double score) {
      Cut& best = cuts[begin + size];
      const double sum = cuts[begin].score + score;
      if (sum > best.score) best = {sum, id, static_cast<int32_t>(begin)};
    };
    bool is_token = false;
    trie_.prefixes(word.substr(begin), [&](int32_t id, size_t size) {
      is_token = is_token || size == character;
      offer(id, size, scores_[id]);
    });
    if (!is_token) offer(unknown, character, unknown_score_);
    begin += character;
  }

  const size_t first = ids.size();
  for (auto end = static_cast<int32_t>(word.size()); end > 0; end = cuts[end].begin) {
    const bool repeats = cuts[end].id == unknown && ids.size() > first && ids.back() == unknown;
    if (!repeats) ids.push_back(cuts[end].id);
  }
  std::reverse(ids.begin() + static_cast<std::ptrdiff_t>(first), ids.end());
}

}  // namespace nibble
