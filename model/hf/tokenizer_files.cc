#include "model/hf/tokenizer_files.h"

#include <algorithm>
#include <charconv>
#include <iterator>

#include "base/error.h"
#include "model/hf/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

void add(std::map<int64_t, AddedToken>& tokens, int64_t id, AddedToken token, int64_t num_tokens) {
  check(id >= 0 && id < num_tokens, "added token '", token.text, "' has the id ", id,
        ", the model has ", num_tokens, " tokens");
  tokens.try_emplace(id, std::move(token));
}

AddedToken parse_added(const Json& token) {
  check(token.is_object(), "an added token is a JSON ", token.type_name(), ", not an object");
  const auto text = text_field(token, "content");
  check(text.has_value(), "an added token has no 'content'");
  const bool takes_spaces =
      bool_field(token, "lstrip").value_or(false) || bool_field(token, "rstrip").value_or(false);
  return {*text, bool_field(token, "special").value_or(false), takes_spaces};
}

int64_t parse_id(const std::string& text) {
  int64_t id = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  check(error == std::errc() && end == text.data() + text.size(), "key 'added_tokens_decoder': '",
        text, "' is no id");
  return id;
}

}  // namespace

std::string TokenizerFiles::tokenizer_class() const {
  return config ? text_field(*config, "tokenizer_class").value_or("") : "";
}

TokenizerFiles read_tokenizer_files(const std::string& folder) {
  TokenizerFiles files;
  files.folder = folder;
  files.tokenizer = read_json_file(files.path("tokenizer.json"));
  files.config = read_json_file(files.path("tokenizer_config.json"));
  files.added = read_json_file(files.path("added_tokens.json"));
  return files;
}

std::map<int64_t, AddedToken> read_added_tokens(const TokenizerFiles& files, int64_t num_tokens) {
  std::map<int64_t, AddedToken> tokens;
  with_frame(files.path("tokenizer_config.json"), [&] {
    const Json* list = files.config ? object_field(*files.config, "added_tokens_decoder") : nullptr;
    if (!list) return;
    for (const auto& [id, token] : list->items())
      add(tokens, parse_id(id), parse_added(token), num_tokens);
  });
  with_frame(files.path("added_tokens.json"), [&] {
    if (!files.added) return;
    for (const auto& [text, unused] : files.added->items()) {
      const auto id = int_field(*files.added, text.c_str());
      if (id) add(tokens, *id, {text}, num_tokens);
    }
  });
  with_frame(files.path("tokenizer.json"), [&] {
    const Json* list = files.tokenizer ? array_field(*files.tokenizer, "added_tokens") : nullptr;
    if (!list) return;
    for (const Json& token : *list) {
      AddedToken parsed = parse_added(token);
      parsed.only_in_tokenizer_json = true;
      const auto id = int_field(token, "id");
      check(id.has_value(), "added token '", parsed.text, "' has no 'id'");
      add(tokens, *id, parsed, num_tokens);
    }
  });
  return tokens;
}

std::optional<std::string> named_token(const TokenizerFiles& files, const std::string& key) {
  if (!files.config) return std::nullopt;
  return with_frame(files.path("tokenizer_config.json"), [&]() -> std::optional<std::string> {
    const Json* token = find_field(*files.config, key.c_str());
    if (!token) return std::nullopt;
    if (token->is_object()) return text_field(*token, "content");
    return text_field(*files.config, key.c_str());
  });
}

bool looks_special(std::string_view text) {
  constexpr std::string_view kTexts[] = {"<pad>", "<mask>", "<2mass>", "[@BOS@]"};
  if (std::find(std::begin(kTexts), std::end(kTexts), text) != std::end(kTexts)) return true;
  return (text.starts_with("<|") && text.ends_with("|>")) ||
         (text.starts_with("<｜") && text.ends_with("｜>")) ||
         (text.starts_with("<unused") && text.ends_with('>'));
}

std::string with_spaces(std::string text) {
  constexpr std::string_view kMark = "\xe2\x96\x81";
  for (size_t at = 0; (at = text.find(kMark, at)) != std::string::npos; ++at)
    text.replace(at, kMark.size(), 1, ' ');
  return text;
}

}  // namespace nibble
