#include "model/hf/vocabulary.h"

#include <sstream>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "io/atomic_file.h"
#include "model/hf/json_fields.h"
#include "model/hf/pre_tokenizer.h"
#include "model/hf/sentencepiece.h"
#include "model/tokenizer_pre.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

// tokenizer.ggml.token_type (source: llama.cpp include/llama.h).
constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6;

// llama.cpp's converter gives these scores to ids without a token and to added tokens.
constexpr float kPaddingScore = -10000.0f, kAddedScore = -1000.0f;

/// Tokens by id; ids that no file names are "[PAD<id>]".
struct Tokens {
  std::vector<std::string> texts;
  std::vector<float> scores;
  std::vector<int32_t> types;

  explicit Tokens(int64_t count)
      : texts(static_cast<size_t>(count)),
        scores(static_cast<size_t>(count), kPaddingScore),
        types(static_cast<size_t>(count), kUnused) {
    for (size_t id = 0; id < texts.size(); ++id) texts[id] = concat("[PAD", id, ']');
  }
  int64_t size() const { return static_cast<int64_t>(texts.size()); }
  void set(int64_t id, std::string text, int32_t type) {
    texts[static_cast<size_t>(id)] = std::move(text);
    types[static_cast<size_t>(id)] = type;
  }
  int32_t type(int64_t id) const { return types[static_cast<size_t>(id)]; }
};

template <class T>
GgufArray array_of(GgufValueType type, std::vector<T> values) {
  return {type, std::move(values)};
}

GgufMetadata token_metadata(const char* model, const std::string& pre, Tokens tokens,
                            bool with_scores) {
  GgufMetadata metadata;
  const std::string prefix = "tokenizer.ggml.";
  metadata.set(prefix + "model", std::string(model));
  metadata.set(prefix + "pre", pre);
  metadata.set(prefix + "tokens", array_of(GgufValueType::kString, std::move(tokens.texts)));
  if (with_scores)
    metadata.set(prefix + "scores", array_of(GgufValueType::kFloat32, std::move(tokens.scores)));
  metadata.set(prefix + "token_type", array_of(GgufValueType::kInt32, std::move(tokens.types)));
  return metadata;
}

/// {text: id} into tokens of type kNormal.
void set_vocabulary(const Json& vocabulary, Tokens& tokens) {
  for (const auto& [text, value] : vocabulary.items()) {
    check(value.is_number_unsigned(), "the id of token '", text, "' is ", value.type_name(),
          ", not a number of at least 0");
    const auto id = value.get<uint64_t>();
    check(id < static_cast<uint64_t>(tokens.size()), "token '", text, "' has the id ", id,
          ", the model has ", tokens.size(), " tokens");
    check(tokens.type(static_cast<int64_t>(id)) == kUnused, "two tokens have the id ", id);
    tokens.set(static_cast<int64_t>(id), text, kNormal);
  }
}

/// Added tokens take the place of what stands at their id. kMissing: those that tokenizer.json
/// alone knows, only where nothing stands. kAsMarked: control tokens are those that say so.
void set_added(const TokenizerFiles& files, AddedTokens which, Tokens& tokens) {
  for (const auto& [id, token] : read_added_tokens(files, tokens.size())) {
    if (token.only_in_tokenizer_json && which == AddedTokens::kMissing &&
        tokens.type(id) != kUnused)
      continue;
    const bool as_marked = which == AddedTokens::kAsMarked;
    const bool control = token.special || (!as_marked && looks_special(token.text));
    tokens.set(id, control || as_marked ? token.text : with_spaces(token.text),
               control ? kControl : kUserDefined);
    tokens.scores[static_cast<size_t>(id)] = kAddedScore;
  }
}

/// Tokens that tokenizer_config.json names ("bos_token") are control tokens.
void set_named(const TokenizerFiles& files, Tokens& tokens) {
  std::unordered_set<std::string> named;
  for (const char* name : {"bos", "eos", "unk", "sep", "pad", "cls", "mask"})
    if (const auto text = named_token(files, concat(name, "_token"))) named.insert(*text);
  for (int64_t id = 0; id < tokens.size(); ++id)
    if (tokens.type(id) == kNormal && named.count(tokens.texts[static_cast<size_t>(id)]))
      tokens.types[static_cast<size_t>(id)] = kControl;
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
  const std::string type = text_field(*normalizer, "type").value_or("");
  const Json* parts = array_field(*normalizer, "normalizers");
  const bool nothing = type == "Sequence" && parts && parts->empty();
  // llama.cpp leaves text as it is: a text that is not in this form gets other tokens there.
  check(type == "NFC" || nothing, "normalizer '", type, "'; nibble has NFC and none");
}

}  // namespace

GgufMetadata bpe_vocabulary(const TokenizerFiles& files, int64_t vocab_size,
                            const std::string& pre) {
  Tokens tokens(vocab_size);
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
  set_added(files, AddedTokens::kAll, tokens);
  set_named(files, tokens);
  GgufMetadata metadata = token_metadata("gpt2", name, std::move(tokens), false);
  metadata.set("tokenizer.ggml.merges", array_of(GgufValueType::kString, std::move(merges)));
  return metadata;
}

GgufMetadata sentencepiece_vocabulary(const TokenizerFiles& files, int64_t vocab_size,
                                      AddedTokens added) {
  const std::string path = files.path("tokenizer.model");
  Tokens tokens(vocab_size);
  with_frame(path, [&] {
    const SentencePieceModel model = parse_sentencepiece(read_file(path));
    check(model.model_type == 2, "is of type ", model.model_type,
          "; nibble has sentencepiece's BPE (2)");
    const auto count = static_cast<int64_t>(model.pieces.size());
    check(count <= vocab_size, "has ", count, " pieces, the model ", vocab_size, " tokens");
    for (int64_t id = 0; id < count; ++id) {
      const SentencePiece& piece = model.pieces[static_cast<size_t>(id)];
      tokens.set(id, piece.text,
                 piece.type == kUserDefined ? kNormal : static_cast<int32_t>(piece.type));
      tokens.scores[static_cast<size_t>(id)] = piece.score;
    }
  });
  set_added(files, added, tokens);
  return token_metadata("llama", "default", std::move(tokens), true);
}

bool is_merged_sentencepiece(const Json& tokenizer) {
  const Json* model = object_field(tokenizer, "model");
  return model && text_field(*model, "type").value_or("") == "BPE" &&
         bool_field(*model, "byte_fallback").value_or(false);
}

GgufMetadata merged_sentencepiece_vocabulary(const TokenizerFiles& files, int64_t vocab_size) {
  Tokens tokens(vocab_size);
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
  set_added(files, AddedTokens::kAll, tokens);
  set_named(files, tokens);

  // sentencepiece joins what gives the piece of the highest score, and a merge list is that order.
  std::unordered_map<std::string, float> scores;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    std::string joined = merges[rank];
    joined.erase(joined.find(' '), 1);
    scores.try_emplace(std::move(joined), -static_cast<float>(rank));
  }
  const float lowest = -static_cast<float>(merges.size());
  for (size_t id = 0; id < tokens.texts.size(); ++id) {
    const std::string& text = tokens.texts[id];
    const auto found = scores.find(text);
    tokens.scores[id] = found == scores.end() ? lowest : found->second;
    const bool byte = text.size() == 6 && text.starts_with("<0x") && text.ends_with('>');
    if (byte && tokens.types[id] == kNormal) tokens.types[id] = kByte;
    if (text == unknown) tokens.types[id] = kUnknown;
  }
  return token_metadata("llama", "default", std::move(tokens), true);
}

}  // namespace nibble
