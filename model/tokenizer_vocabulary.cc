#include "model/tokenizer_vocabulary.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "base/error.h"

namespace nibble {
namespace {

const std::string kPrefix = "tokenizer.ggml.";

/// Tokens that end a generation wherever they occur, whatever their declared type: metadata names
/// only some of them (list: llama.cpp src/llama-vocab.cpp).
constexpr std::string_view kEndOfGeneration[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
};

/// Fill-in-the-middle tokens, found by their text where the metadata does not name them.
struct FillInToken {
  std::string_view key;
  bool ends_generation;
  std::vector<std::string_view> texts;
};
const std::vector<FillInToken> kFillInTokens = {
    {"fim_pre",
     false,
     {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
      "<|code_prefix|>", "<|prefix|>"}},
    {"fim_suf",
     false,
     {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
      "<|code_suffix|>", "<|suffix|>"}},
    {"fim_mid",
     false,
     {"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
      "<|code_middle|>", "<|middle|>"}},
    {"fim_pad", true, {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}},
    {"fim_rep", true, {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}},
    {"fim_sep", true, {"<|file_sep|>"}},
};

bool is_special(TokenType type) {
  return type == TokenType::kControl || type == TokenType::kUserDefined ||
         type == TokenType::kUnknown;
}

}  // namespace

Vocabulary::Vocabulary(const GgufMetadata& metadata, const VocabularyDefaults& defaults)
    : texts_(metadata.get_strings(kPrefix + "tokens")) {
  check(!texts_.empty(), "metadata key '", kPrefix, "tokens': the list is empty");
  ids_.reserve(texts_.size());
  for (int32_t id = 0; id < size(); ++id) {
    if (texts_[id].empty()) texts_[id] = concat("[EMPTY_", id, "]");
    const auto [found, added] = ids_.emplace(texts_[id], id);
    check(added, "metadata key '", kPrefix, "tokens': tokens ", found->second, " and ", id,
          " are both '", texts_[id], "'");
  }
  read_types(metadata);
  read_special(metadata, defaults);
}

void Vocabulary::read_types(const GgufMetadata& metadata) {
  types_.assign(texts_.size(), TokenType::kNormal);
  const std::string key = kPrefix + "token_type";
  if (!metadata.contains(key)) return;
  const std::vector<int64_t> numbers = metadata.get_ints(key);
  check(numbers.size() == texts_.size(), "metadata key '", key, "': wants one type for each of ",
        texts_.size(), " tokens, found ", numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i)
    types_[i] = numbers[i] >= 1 && numbers[i] <= 6 ? static_cast<TokenType>(numbers[i])
                                                   : TokenType::kUndefined;
}

int32_t Vocabulary::special_id(const GgufMetadata& metadata, std::string_view name,
                               int32_t otherwise) const {
  const std::string key = concat(kPrefix, name, "_token_id");
  if (!metadata.contains(key)) return otherwise < size() ? otherwise : -1;
  const int64_t id = metadata.get_int(key);
  check(id >= 0 && id < size(), "metadata key '", key, "': wants an id below ", size(), ", found ",
        id);
  return static_cast<int32_t>(id);
}

void Vocabulary::read_special(const GgufMetadata& metadata, const VocabularyDefaults& defaults) {
  bos_ = special_id(metadata, "bos", defaults.bos);
  eos_ = special_id(metadata, "eos", defaults.eos);
  unknown_ = special_id(metadata, "unknown", defaults.unknown);
  add_bos_ = metadata.get_bool_or(kPrefix + "add_bos_token", defaults.add_bos);
  add_eos_ = metadata.get_bool_or(kPrefix + "add_eos_token", defaults.add_eos);
  check(!add_bos_ || bos_ >= 0, "the model adds a BOS token, but the metadata names none");
  check(!add_eos_ || eos_ >= 0, "the model adds an EOS token, but the metadata names none");

  for (const FillInToken& token : kFillInTokens) {
    int32_t id = special_id(metadata, token.key, -1);
    for (size_t i = 0; id < 0 && i < token.texts.size(); ++i) {
      id = find(token.texts[i]);
      if (id >= 0) types_[id] = TokenType::kControl;
    }
    if (id >= 0 && token.ends_generation) end_of_generation_.insert(id);
  }
  for (std::string_view text : kEndOfGeneration) {
    const int32_t id = find(text);
    if (id < 0) continue;
    end_of_generation_.insert(id);
    types_[id] = TokenType::kControl;
  }
  for (int32_t id : {eos_, special_id(metadata, "eot", -1), special_id(metadata, "eom", -1)})
    if (id >= 0) end_of_generation_.insert(id);

  set_exceptions(metadata);
  for (int32_t id = 0; id < size(); ++id)
    if (is_special(types_[id])) special_.push_back(id);
  std::stable_sort(special_.begin(), special_.end(),
                   [this](int32_t a, int32_t b) { return texts_[a].size() > texts_[b].size(); });
}

void Vocabulary::set_exceptions(const GgufMetadata& metadata) {
  const auto set_type = [this](std::string_view text, TokenType type) {
    if (const int32_t id = find(text); id >= 0) types_[id] = type;
  };
  const auto ends = [this](std::string_view text) { return is_end_of_generation(find(text)); };
  const auto continues = [&](std::string_view text, TokenType type) {
    end_of_generation_.erase(find(text));
    set_type(text, type);
  };
  // What gpt-oss writes is always shown, and its messages may follow each other.
  for (const char* text : {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"})
    set_type(text, TokenType::kUserDefined);
  const bool calls = ends("<|call|>") || ends("<|calls|>");
  if (ends("<|end|>") && calls && (ends("<|return|>") || ends("<|flush|>")))
    continues("<|end|>", TokenType::kUserDefined);
  if (ends("</s>") && (ends("<|tool_response>") || ends("<|plamo:eos|>")))
    continues("</s>", TokenType::kNormal);

  std::string name = metadata.get_string_or("general.name", "");
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (name.find("phi-3") == std::string::npos && name.find("phi3") == std::string::npos) return;
  for (int32_t id = 0; id < size(); ++id)
    if (is_special(types_[id])) strips_spaces_.insert(id);
  strips_spaces_.insert(find("</s>"));
  for (const char* text : {"<unk>", "<s>", "<|endoftext|>"}) strips_spaces_.erase(find(text));
}

int32_t Vocabulary::find(std::string_view text) const {
  const auto found = ids_.find(text);
  return found == ids_.end() ? -1 : found->second;
}

std::string Vocabulary::byte_of(int32_t id) const {
  const std::string& text = texts_[id];
  unsigned byte = 0;
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return "";
  const auto [end, error] = std::from_chars(text.data() + 3, text.data() + 5, byte, 16);
  if (error != std::errc() || end != text.data() + 5) return "";
  return std::string(1, static_cast<char>(byte));
}

std::vector<Vocabulary::Fragment> Vocabulary::split_special(std::string_view text,
                                                            bool parse_special) const {
  std::vector<Fragment> fragments;
  if (!text.empty()) fragments.push_back({text});
  for (int32_t id : special_) {
    if (!parse_special && types_[id] != TokenType::kUserDefined) continue;
    const std::string& special = texts_[id];
    if (text.find(special) == std::string_view::npos) continue;
    std::vector<Fragment> finer;
    for (Fragment rest : fragments) {
      while (rest.id < 0 && !rest.text.empty()) {
        const size_t at = rest.text.find(special);
        if (at == std::string_view::npos) break;
        if (at > 0) finer.push_back({rest.text.substr(0, at)});
        finer.push_back({special, id});
        rest.text.remove_prefix(at + special.size());
        if (!strips_spaces_.contains(id)) continue;
        while (!rest.text.empty() && std::isspace(static_cast<unsigned char>(rest.text.front())))
          rest.text.remove_prefix(1);
      }
      if (!rest.text.empty()) finer.push_back(rest);
    }
    fragments = std::move(finer);
  }
  return fragments;
}

std::vector<float> read_scores(const GgufMetadata& metadata, const Vocabulary& vocabulary) {
  const std::string key = kPrefix + "scores";
  std::vector<float> scores = metadata.get_floats(key);
  check(scores.size() == static_cast<size_t>(vocabulary.size()), "metadata key '", key,
        "': wants one score for each of ", vocabulary.size(), " tokens, found ", scores.size());
  for (size_t id = 0; id < scores.size(); ++id)
    check(!std::isnan(scores[id]), "metadata key '", key, "': the score of token ", id,
          " is not a number");
  return scores;
}

std::vector<int32_t> VocabularyTokenizer::encode(std::string_view text, bool add_special,
                                                 bool parse_special) const {
  std::vector<int32_t> ids;
  if (add_special && vocabulary_.add_bos()) ids.push_back(vocabulary_.bos());
  bool starts = true;
  for (const Vocabulary::Fragment& fragment : vocabulary_.split_special(text, parse_special)) {
    starts = starts || fragment.id >= 0;
    if (fragment.id >= 0) {
      ids.push_back(fragment.id);
    } else {
      encode_text(fragment.text, starts, ids);
      starts = false;
    }
  }
  if (add_special && vocabulary_.add_eos()) ids.push_back(vocabulary_.eos());
  return ids;
}

std::string VocabularyTokenizer::decode(const std::vector<int32_t>& ids, bool special) const {
  std::vector<size_t> ends;
  return decode(ids, special, ends);
}

std::vector<size_t> VocabularyTokenizer::byte_ends(const std::vector<int32_t>& ids) const {
  std::vector<size_t> ends;
  decode(ids, /*special=*/true, ends);
  return ends;
}

std::string VocabularyTokenizer::decode(const std::vector<int32_t>& ids, bool special,
                                        std::vector<size_t>& ends) const {
  std::string text;
  bool starts = adds_space();
  for (int32_t id : ids) {
    check(id >= 0 && id < vocabulary_.size(), "token id ", id, " is outside the vocabulary of ",
          vocabulary_.size());
    const TokenType type = vocabulary_.type(id);
    if (is_special(type)) {
      if (special || type == TokenType::kUserDefined) text += vocabulary_.text(id);
      starts = adds_space();
    } else {
      const std::string bytes = piece(id);
      text.append(bytes, starts && bytes.starts_with(' ') ? 1 : 0);
      starts = false;
    }
    ends.push_back(text.size());
  }
  return text;
}

}  // namespace nibble
