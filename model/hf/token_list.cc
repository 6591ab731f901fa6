#include "model/hf/token_list.h"

#include <unordered_set>
#include <utility>

#include "base/error.h"
#include "base/log.h"

namespace nibble {
namespace {

constexpr float kAddedScore = -1000.0f;

}  // namespace

bool is_byte_name(std::string_view text) {
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); };
  return text.size() == 6 && text.starts_with("<0x") && is_digit(text[3]) && is_digit(text[4]) &&
         text[5] == '>';
}

TokenList::TokenList(int64_t count)
    : texts_(static_cast<size_t>(count)),
      scores_(static_cast<size_t>(count), kPaddingScore),
      types_(static_cast<size_t>(count), TokenType::kUnused) {
  for (size_t id = 0; id < texts_.size(); ++id) texts_[id] = concat("[PAD", id, ']');
}

void TokenList::set(int64_t id, std::string text, TokenType type) {
  texts_[static_cast<size_t>(id)] = std::move(text);
  types_[static_cast<size_t>(id)] = type;
}

void TokenList::set_added(const TokenizerFiles& files, AddedTokens which) {
  std::vector<std::string> takes_spaces;
  for (const auto& [id, token] : read_added_tokens(files, size())) {
    if (token.only_in_tokenizer_json && which == AddedTokens::kMissing &&
        type(id) != TokenType::kUnused)
      continue;
    const bool as_marked = which == AddedTokens::kAsMarked;
    const bool control = token.special || (!as_marked && looks_special(token.text));
    set(id, control || as_marked ? token.text : with_spaces(token.text),
        control ? TokenType::kControl : TokenType::kUserDefined);
    set_score(id, kAddedScore);
    if (token.takes_spaces) takes_spaces.push_back(token.text);
  }
  if (!takes_spaces.empty())
    note(files.folder, ": ", takes_spaces.size(), " added tokens ('", takes_spaces.front(),
         "', ...) take spaces beside them in transformers; llama.cpp keeps these, but for models "
         "with Phi-3 in their name");
}

void TokenList::set_named(const TokenizerFiles& files) {
  std::unordered_set<std::string> named;
  for (const char* name : {"bos", "eos", "unk", "sep", "pad", "cls", "mask"})
    if (const auto text = named_token(files, concat(name, "_token"))) named.insert(*text);
  for (int64_t id = 0; id < size(); ++id)
    if (type(id) == TokenType::kNormal && named.count(text(id))) set_type(id, TokenType::kControl);
}

GgufMetadata TokenList::metadata(const char* model, const std::string& pre, bool with_scores) && {
  std::vector<int32_t> types;
  for (const TokenType type : types_) types.push_back(static_cast<int32_t>(type));
  GgufMetadata metadata;
  const std::string prefix = "tokenizer.ggml.";
  metadata.set(prefix + "model", std::string(model));
  metadata.set(prefix + "pre", pre);
  metadata.set(prefix + "tokens", GgufArray{GgufValueType::kString, std::move(texts_)});
  if (with_scores)
    metadata.set(prefix + "scores", GgufArray{GgufValueType::kFloat32, std::move(scores_)});
  metadata.set(prefix + "token_type", GgufArray{GgufValueType::kInt32, std::move(types)});
  return metadata;
}

}  // namespace nibble
