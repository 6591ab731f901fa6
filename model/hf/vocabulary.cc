#include "model/hf/vocabulary.h"

#include <sstream>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "io/atomic_file.h"
#include "model/hf/json_fields.h"
#include "model/hf/pre_tokenizer.h"
#include "model/hf/sentencepiece.h"
#include "model/hf/token_list.h"
#include "model/hf/unigram.h"
#include "model/tokenizer_pre.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

/// {text: id} into tokens of type TokenType::kNormal.
void set_vocabulary(const Json& vocabulary, TokenList& tokens) {
  for (const auto& [text, value] : vocabulary.items()) {
    check(value.is_number_unsigned(), "the id of token '", text, "' is ", value.type_name(),
          ", not a number of at least 0");
    const auto id = value.get<uint64_t>();
    check(id < static_cast<uint64_t>(tokens.size()), "token '", text, "' has the id ", id,
          ", the model has ", tokens.size(), " tokens");
    check(tokens.type(static_cast<int64_t>(id)) == TokenType::kUnused, "two tokens have the id ",
          id);
    tokens.set(static_cast<int64_t>(id), text, TokenType::kNormal);
  }
}

const Json& model_of(const Json& tokenizer) {
  const Json* model = object_field(tokenizer, "model");
  check(model, "has no 'model'");
  const std::string type = text_field(*model, "type").value_or("BPE");
  check(type == "BPE", "the tokenizer is a ", type, " model; nibble has BPE");
  return *model;
}

/// One merge as "left right". A space inside a part is spelled as a byte, so that there is one.
std::string merge_text(const Json& merge) {
  if (merge.is_string()) return merge.get<std::string>();
  check(merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string(),
        "a merge is neither a string nor two");
  std::string text;
  for (const Json& part : merge) {
    if (!text.empty()) text += ' ';
    for (const char c : part.get<std::string>()) text += c == ' ' ? "\xc4\xa0" : std::string(1, c);
  }
  return text;
}

std::vector<std::string> merges_of(const Json& model) {
  const Json* list = array_field(model, "merges");
  check(list && !list->empty(), "key 'merges': names none");
  std::vector<std::string> merges;
  for (const Json& merge : *list) {
    merges.push_back(merge_text(merge));
    const size_t space = merges.back().find(' ');
    check(space != std::string::npos && space > 0 && space + 1 < merges.back().size(), "merge ",
          merges.size() - 1, " is '", merges.back(), "', not two texts and a space");
  }
  return merges;
}

/// Lines "left right"; the first may be a comment.
std::vector<std::string> read_merges_file(const std::string& path) {
  std::istringstream lines(read_file(path));
  std::vector<std::string> merges;
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (++number == 1 && line.starts_with('#')) continue;
    if (line.empty()) continue;
    const size_t space = line.find(' ');
    check(space != std::string::npos && space > 0 && space + 1 < line.size() &&
              line.find(' ', space + 1) == std::string::npos,
          path, ": line ", number, " is '", line, "', not two texts and a space");
    merges.push_back(line);
  }
  return merges;
}

/// tokenizer.ggml.pre of a folder without tokenizer.json: what its class does in transformers.
std::string pre_tokenizer_of_class(std::string name) {
  if (name.ends_with("Fast")) name.resize(name.size() - 4);
  if (name == "Qwen2Tokenizer") return "qwen2";
  if (name == "GPT2Tokenizer") return "gpt-2";
  fail("there is no tokenizer.json, and how tokenizer_class '", name,
       "' cuts text is not known; nibble knows Qwen2Tokenizer and GPT2Tokenizer");
}

/// Normalizers that a GGUF file cannot say would be lost.
void check_normalizer(const Json& tokenizer) {
  const Json* normalizer = object_field(tokenizer, "normalizer");
  if (!normalizer) return;
  // llama.cpp leaves text as it is: a text that is not in this form gets other tokens there.
  for (const Json& step : steps_of(*normalizer, "normalizers")) {
    const std::string type = text_field(step, "type").value_or("");
    check(type == "NFC", "normalizer '", type, "'; nibble has NFC and none");
  }
}

UnigramRules rules_of(const SentencePieceModel& model) {
  check(!model.spaces_are_suffixes && model.escapes_spaces,
        "marks words at their ends, or not at all; nibble has marks at their beginnings");
  // llama.cpp, where it merges spaces, puts one before the text too.
  return {model.character_map, model.adds_space, model.merges_spaces && model.adds_space,
          model.byte_fallback};
}

}  // namespace

GgufMetadata bpe_vocabulary(const TokenizerFiles& files, int64_t vocab_size,
                            const std::string& pre) {
  TokenList tokens(vocab_size);
  std::vector<std::string> merges;
  std::string name = pre;
  if (files.tokenizer) {
    with_frame(files.path("tokenizer.json"), [&] {
      const Json& model = model_of(*files.tokenizer);
      check(!bool_field(model, "byte_fallback").value_or(false),
            "byte fallback is known of llama tokenizers only");
      check(text_field(model, "continuing_subword_prefix").value_or("").empty() &&
                text_field(model, "end_of_word_suffix").value_or("").empty(),
            "nibble has no marks of words' parts or ends");
      check_normalizer(*files.tokenizer);
      if (name.empty()) name = pre_tokenizer_name(*files.tokenizer);
      const Json* vocabulary = object_field(model, "vocab");
      check(vocabulary, "has no 'vocab'");
      set_vocabulary(*vocabulary, tokens);
      merges = merges_of(model);
    });
  } else {
    const auto vocabulary = read_json_file(files.path("vocab.json"));
    check(vocabulary.has_value(), files.folder,
          ": has neither tokenizer.json nor tokenizer.model nor vocab.json");
    with_frame(files.path("vocab.json"), [&] { set_vocabulary(*vocabulary, tokens); });
    merges = read_merges_file(files.path("merges.txt"));
    if (name.empty()) name = pre_tokenizer_of_class(files.tokenizer_class());
  }
  find_pre_tokenizer(name);  // throws where the caller's is unknown
  tokens.set_added(files, AddedTokens::kAll);
  tokens.set_named(files);
  GgufMetadata metadata = std::move(tokens).metadata("gpt2", name, false);
  metadata.set("tokenizer.ggml.merges", GgufArray{GgufValueType::kString, std::move(merges)});
  return metadata;
}

GgufMetadata sentencepiece_vocabulary(const TokenizerFiles& files, int64_t vocab_size,
                                      AddedTokens added) {
  const std::string path = files.path("tokenizer.model");
  TokenList tokens(vocab_size);
  const SentencePieceModel model =
      with_frame(path, [&] { return parse_sentencepiece(read_file(path)); });
  const bool unigram = model.model_type == 1;
  with_frame(path, [&] {
    check(unigram || model.model_type == 2, "is of type ", model.model_type,
          "; nibble has sentencepiece's Unigram (1) and BPE (2)");
    const auto count = static_cast<int64_t>(model.pieces.size());
    check(count <= vocab_size, "has ", count, " pieces, the model ", vocab_size, " tokens");
    for (int64_t id = 0; id < count; ++id) {
      const SentencePiece& piece = model.pieces[static_cast<size_t>(id)];
      const auto type = static_cast<TokenType>(piece.type);
      tokens.set(id, piece.text,
                 type == TokenType::kUserDefined && !unigram ? TokenType::kNormal : type);
      tokens.set_score(id, piece.score);
    }
  });
  tokens.set_added(files, added);
  if (unigram) return with_frame(path, [&] { return unigram_metadata(tokens, rules_of(model)); });
  return std::move(tokens).metadata("llama", "default", true);
}

bool is_merged_sentencepiece(const Json& tokenizer) {
  const Json* model = object_field(tokenizer, "model");
  return model && text_field(*model, "type").value_or("") == "BPE" &&
         bool_field(*model, "byte_fallback").value_or(false);
}

GgufMetadata merged_sentencepiece_vocabulary(const TokenizerFiles& files, int64_t vocab_size) {
  TokenList tokens(vocab_size);
  std::vector<std::string> merges;
  std::string unknown;
  with_frame(files.path("tokenizer.json"), [&] {
    const Json& model = model_of(*files.tokenizer);
    const Json* vocabulary = object_field(model, "vocab");
    check(vocabulary, "has no 'vocab'");
    set_vocabulary(*vocabulary, tokens);
    merges = merges_of(model);
    unknown = text_field(model, "unk_token").value_or("");
  });
  tokens.set_added(files, AddedTokens::kAll);
  tokens.set_named(files);

  // sentencepiece joins what gives the piece of the highest score, and a merge list is that order.
  std::unordered_map<std::string, float> scores;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    std::string joined = merges[rank];
    joined.erase(joined.find(' '), 1);
    scores.try_emplace(std::move(joined), -static_cast<float>(rank));
  }
  const float lowest = -static_cast<float>(merges.size());
  for (int64_t id = 0; id < tokens.size(); ++id) {
    const std::string& text = tokens.text(id);
    const auto found = scores.find(text);
    tokens.set_score(id, found == scores.end() ? lowest : found->second);
    if (is_byte_name(text) && tokens.type(id) == TokenType::kNormal)
      tokens.set_type(id, TokenType::kByte);
    if (text == unknown) tokens.set_type(id, TokenType::kUnknown);
  }
  return std::move(tokens).metadata("llama", "default", true);
}

}  // namespace nibble
