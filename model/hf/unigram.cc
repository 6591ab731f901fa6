#include "model/hf/unigram.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "model/hf/base64.h"
#include "model/hf/json_fields.h"
#include "model/hf/normalizers.h"
#include "model/tokenizer_characters.h"
#include "model/tokenizer_spaces.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

/// What the normalizers and pre-tokenizers of a tokenizer.json do, step by step: characters are
/// replaced first, then it is about spaces.
class Steps {
 public:
  void normalize(const Json& step) {
    const std::string type = text_field(step, "type").value_or("");
    if (type == "Precompiled") {
      set_character_map(step);
    } else if (type == "Prepend") {
      check(text_field(step, "prepend") == kSpaceMark, "normalizer 'Prepend' adds what is no '",
            kSpaceMark, "'");
      rules_.adds_space = true;
    } else if (type == "Replace" && replaces_spaces(step)) {
      replace_spaces(step);
    } else if (type != "Strip") {  // at the end; a space goes there where runs of them are merged
      add_normalizer(step, "normalizer");
    }
  }

  void pre_tokenize(const Json& step) {
    const std::string type = text_field(step, "type").value_or("");
    if (type == "WhitespaceSplit") {
      // A published map makes a space of every other one, but for U+0085.
      if (rules_.character_map.empty()) add_normalizer(step, "pre-tokenizer");
      merges_ = true;
      return;
    }
    check(type == "Metaspace", "pre-tokenizer '", type,
          "'; nibble knows Metaspace and WhitespaceSplit with a Unigram tokenizer");
    check(text_field(step, "replacement").value_or(std::string(kSpaceMark)) == kSpaceMark,
          "pre-tokenizer 'Metaspace' has another mark than '", kSpaceMark, "'");
    const bool adds = bool_field(step, "add_prefix_space").value_or(true);
    const auto scheme = text_field(step, "prepend_scheme");
    rules_.adds_space = rules_.adds_space || (scheme ? *scheme != "never" : adds);
    splits_ = bool_field(step, "split").value_or(true);
    marks_ = true;
  }

  /// Whether no token may go from one word into the next.
  bool splits() const { return splits_; }

  UnigramRules rules() && {
    check(marks_, "spaces are not replaced by '", kSpaceMark, "'");
    if (!normalizers_.empty()) rules_.character_map = normalizers_.character_map();
    // llama.cpp, where it merges spaces, puts one before the text too.
    rules_.merges_spaces = merges_ && rules_.adds_space;
    return std::move(rules_);
  }

 private:
  void set_character_map(const Json& step) {
    check(rules_.character_map.empty() && normalizers_.empty() && !marks_ && !merges_,
          "normalizer 'Precompiled' comes after another");
    const auto text = text_field(step, "precompiled_charsmap");
    check(text.has_value(), "normalizer 'Precompiled' has no 'precompiled_charsmap'");
    rules_.character_map = decode_base64(*text);
  }

  void add_normalizer(const Json& step, const char* kind) {
    const std::string type = text_field(step, "type").value_or("");
    check(rules_.character_map.empty() && !marks_ && !merges_, kind, " '", type,
          "' comes after another");
    check(normalizers_.add(step), kind, " '", type,
          "'; nibble knows Precompiled, NFC, NFD, NFKC, NFKD, Nmt, Lowercase, Replace, Prepend and "
          "Strip with a Unigram tokenizer");
  }

  /// What a "Replace" looks for: a text or an expression.
  static std::string pattern_of(const Json& step) {
    const Json* pattern = object_field(step, "pattern");
    check(pattern, "normalizer 'Replace' has no 'pattern'");
    const auto text = text_field(*pattern, "String");
    return text ? *text : text_field(*pattern, "Regex").value_or("");
  }

  static bool replaces_spaces(const Json& step) {
    const std::string to = text_field(step, "content").value_or("");
    return (pattern_of(step) == " {2,}" && (to == " " || to == kSpaceMark)) ||
           (pattern_of(step) == " " && to == kSpaceMark);
  }

  void replace_spaces(const Json& step) { (pattern_of(step) == " " ? marks_ : merges_) = true; }

  UnigramRules rules_;
  Normalizers normalizers_;
  bool merges_ = false, splits_ = false, marks_ = false;
};

Steps read_steps(const Json& tokenizer) {
  Steps steps;
  if (const Json* normalizer = object_field(tokenizer, "normalizer"))
    for (const Json& part : steps_of(*normalizer, "normalizers")) steps.normalize(part);
  if (const Json* pre_tokenizer = object_field(tokenizer, "pre_tokenizer"))
    for (const Json& part : steps_of(*pre_tokenizer, "pretokenizers")) steps.pre_tokenize(part);
  return steps;
}

/// [[text, score], ...] into tokens.
void set_vocabulary(const Json& vocabulary, TokenList& tokens) {
  check(static_cast<int64_t>(vocabulary.size()) <= tokens.size(), "has ", vocabulary.size(),
        " tokens, the model ", tokens.size());
  int64_t id = 0;
  for (const Json& token : vocabulary) {
    check(token.is_array() && token.size() == 2 && token[0].is_string() && token[1].is_number(),
          "token ", id, " is not a text and its score");
    tokens.set(id, token[0].get<std::string>(), TokenType::kNormal);
    tokens.set_score(id++, token[1].get<float>());
  }
}

bool is_text(const TokenList& tokens, int64_t id) {
  return tokens.type(id) == TokenType::kNormal || tokens.type(id) == TokenType::kUserDefined;
}

/// A token with a space inside never comes where words are cut first: llama.cpp, which does not cut
/// them, must not find it.
void hide_tokens_across_words(TokenList& tokens) {
  for (int64_t id = 0; id < tokens.size(); ++id) {
    const size_t space = tokens.text(id).rfind(kSpaceMark);
    if (tokens.type(id) != TokenType::kNormal || space == 0 || space == std::string::npos) continue;
    tokens.set_type(id, TokenType::kUnused);
    tokens.set_score(id, TokenList::kPaddingScore);
  }
}

/// llama.cpp has no byte fallback here, but ASCII characters that no token contains can be spelled
/// out: the only way to cut a text at them is then the same.
void spell_bytes(TokenList& tokens) {
  std::array<bool, 128> spelled = {true};  // zero ends a text
  spelled[' '] = true;
  float least = 0;
  for (int64_t id = 0; id < tokens.size(); ++id) {
    if (!is_text(tokens, id)) continue;
    least = std::min(least, tokens.score(id));
    for (const char c : tokens.text(id))
      if (static_cast<unsigned char>(c) < spelled.size()) spelled[static_cast<size_t>(c)] = true;
  }
  for (int64_t id = 0; id < tokens.size(); ++id) {
    if (tokens.type(id) != TokenType::kByte) continue;
    const size_t byte = std::stoul(tokens.text(id).substr(3, 2), nullptr, 16);
    if (byte >= spelled.size() || spelled[byte]) continue;
    tokens.set(id, std::string(1, static_cast<char>(byte)), TokenType::kNormal);
    tokens.set_score(id, least);
  }
}

}  // namespace

GgufMetadata unigram_metadata(TokenList tokens, UnigramRules rules) {
  std::optional<int64_t> unknown;
  for (int64_t id = 0; id < tokens.size() && !unknown; ++id)
    if (tokens.type(id) == TokenType::kUnknown) unknown = id;
  check(unknown.has_value(), "has no unknown token");
  if (rules.byte_fallback) {
    spell_bytes(tokens);
    note("characters beyond ASCII that are no token become '", tokens.text(*unknown),
         "', since llama.cpp has no byte fallback with a Unigram tokenizer");
  }
  GgufMetadata metadata = std::move(tokens).metadata("t5", "default", true);
  const std::string prefix = "tokenizer.ggml.";
  metadata.set(prefix + "add_space_prefix", rules.adds_space);
  metadata.set(prefix + "remove_extra_whitespaces", rules.merges_spaces);
  if (!rules.character_map.empty()) {
    std::vector<uint8_t> bytes(rules.character_map.begin(), rules.character_map.end());
    CharacterMap{bytes};  // throws where it is none
    metadata.set(prefix + "precompiled_charsmap",
                 GgufArray{GgufValueType::kUint8, std::move(bytes)});
  }
  metadata.set(prefix + "unknown_token_id", static_cast<uint32_t>(*unknown));
  return metadata;
}

bool is_unigram(const Json& tokenizer) {
  const Json* model = object_field(tokenizer, "model");
  return model && text_field(*model, "type").value_or("") == "Unigram";
}

GgufMetadata unigram_vocabulary(const TokenizerFiles& files, int64_t vocab_size) {
  TokenList tokens(vocab_size);
  UnigramRules rules;
  int64_t unknown = -1;
  with_frame(files.path("tokenizer.json"), [&] {
    const Json& model = *object_field(*files.tokenizer, "model");
    const Json* vocabulary = array_field(model, "vocab");
    check(vocabulary, "has no 'vocab'");
    set_vocabulary(*vocabulary, tokens);
    unknown = int_field(model, "unk_id").value_or(-1);
    check(unknown >= 0 && unknown < tokens.size(), "key 'unk_id': wants the id of a token, found ",
          unknown);
    Steps steps = read_steps(*files.tokenizer);
    if (steps.splits()) hide_tokens_across_words(tokens);
    rules = std::move(steps).rules();
    rules.byte_fallback = bool_field(model, "byte_fallback").value_or(false);
  });
  tokens.set_added(files, AddedTokens::kAll);
  tokens.set_named(files);
  for (int64_t id = 0; id < tokens.size(); ++id)
    if (tokens.type(id) == TokenType::kNormal && is_byte_name(tokens.text(id)))
      tokens.set_type(id, TokenType::kByte);
  tokens.set_type(unknown, TokenType::kUnknown);
  return with_frame(files.path("tokenizer.json"),
                    [&] { return unigram_metadata(std::move(tokens), std::move(rules)); });
}

}  // namespace nibble
