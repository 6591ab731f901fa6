#include "model/hf/special_tokens.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "io/atomic_file.h"
#include "model/hf/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

/// What a special token is called in Hugging Face's files ("bos_token") and in GGUF.
struct Kind {
  const char *name, *id_key, *add_key;  // nullptr: GGUF has no such key
};
constexpr Kind kKinds[] = {
    {"bos", "bos_token_id", "add_bos_token"}, {"eos", "eos_token_id", "add_eos_token"},
    {"unk", "unknown_token_id", nullptr},     {"sep", "seperator_token_id", "add_sep_token"},
    {"pad", "padding_token_id", nullptr},     {"mask", "mask_token_id", nullptr},
    {"eot", "eot_token_id", nullptr},
};

/// The texts of special tokens and whether each is added, while the files are read.
class SpecialTokens {
 public:
  explicit SpecialTokens(const TokenizerFiles& files) {
    for (const char* name : {"bos", "eos", "unk", "sep", "pad", "cls", "mask", "eot"})
      if (const auto text = named_token(files, concat(name, "_token"))) texts_[name] = *text;
    if (!text("bos") && text("cls")) texts_["bos"] = *text("cls");
    if (!text("eos") && text("sep")) texts_["eos"] = *text("sep");
    if (files.tokenizer)
      with_frame(files.path("tokenizer.json"), [&] { read_post_processor(*files.tokenizer); });
    if (files.config)
      with_frame(files.path("tokenizer_config.json"), [&] { read_config(*files.config); });
  }

  std::optional<std::string> text(const std::string& kind) const {
    const auto found = texts_.find(kind);
    return found == texts_.end() ? std::nullopt : std::optional(found->second);
  }
  /// In the order in which they were found.
  const std::vector<std::pair<std::string, bool>>& added() const { return added_; }

 private:
  bool* find_added(const std::string& kind) {
    const auto found = std::find_if(added_.begin(), added_.end(),
                                    [&](const auto& each) { return each.first == kind; });
    return found == added_.end() ? nullptr : &found->second;
  }
  void set_added(const std::string& kind, bool value) {
    if (bool* found = find_added(kind))
      *found = value;
    else
      added_.emplace_back(kind, value);
  }
  void set_added_if_unknown(const std::string& kind, bool value) {
    if (!find_added(kind)) added_.emplace_back(kind, value);
  }

  void read_post_processor(const Json& tokenizer) {
    const Json* post = object_field(tokenizer, "post_processor");
    if (!post) return;
    const Json* several = array_field(*post, "processors");
    for (const Json& processor : several ? *several : Json::array({*post})) {
      check(processor.is_object(), "key 'post_processor': holds what is no object");
      const std::string type = text_field(processor, "type").value_or("");
      if (type == "ByteLevel") {
        set_added_if_unknown("bos", false);
        set_added_if_unknown("eos", false);
      } else if (type == "TemplateProcessing") {
        read_template(processor);
      } else {
        check(type == "Sequence", "post-processor '", type,
              "'; nibble has ByteLevel, TemplateProcessing and Sequence");
      }
    }
  }

  /// "SpecialToken" or "Sequence" of an element of a template; "" where it is the other.
  static std::string id_of(const Json& element, const char* kind) {
    if (!element.is_object()) return "";
    const Json* inner = object_field(element, kind);
    return inner ? text_field(*inner, "id").value_or("") : "";
  }

  void read_template(const Json& processor) {
    std::string first, last;
    const Json* single = array_field(processor, "single");
    if (single && single->size() > 1) {
      first = id_of(single->front(), "SpecialToken");
      last = id_of(single->back(), "SpecialToken");
      if (!first.empty()) {
        if (first != text("bos") && first != text("cls")) {
          if (!text("bos")) texts_["bos"] = first;
          if (!text("cls")) texts_["cls"] = first;
        }
        set_added("bos", first == text("bos") || first == text("cls"));
      }
      if (!last.empty() && last != text("eos")) {
        // What ended a text until now ends a turn.
        if (text("eos")) texts_["eot"] = *text("eos");
        texts_["eos"] = last;
      }
      if (!last.empty()) set_added("eos", true);
    }
    if (const Json* pair = array_field(processor, "pair"); pair && !pair->empty())
      read_pair(*pair, first, last);
  }

  /// Whether a separator stands between two texts: in [first] A [sep] [eos] B [last].
  void read_pair(const Json& pair, const std::string& first, const std::string& last) {
    std::vector<Json> parts(pair.begin(), pair.end());
    if (!first.empty() && id_of(parts.front(), "SpecialToken") == first) parts.erase(parts.begin());
    if (!last.empty() && !parts.empty() && id_of(parts.back(), "SpecialToken") == last)
      parts.pop_back();
    if (parts.size() < 3 || id_of(parts.front(), "Sequence") != "A" ||
        id_of(parts.back(), "Sequence") != "B")
      return;
    const auto separates = [&](const Json& part) {
      const std::string id = id_of(part, "SpecialToken");
      return !id.empty() && (id == text("sep") || id == text("eos"));
    };
    const bool one = separates(parts[1]) && last.empty();
    const bool two = parts.size() == 4 && separates(parts[2]);
    set_added("sep", one || two);
    if ((one || two) && !text("sep") && text("eos")) texts_["sep"] = *text("eos");
  }

  void read_config(const Json& config) {
    for (const Kind& kind : kKinds)
      if (const Json* add = find_field(config, concat("add_", kind.name, "_token").c_str());
          add && add->is_boolean())
        set_added_if_unknown(kind.name, add->get<bool>());
  }

  std::map<std::string, std::string> texts_;
  std::vector<std::pair<std::string, bool>> added_;
};

/// The id that tokenizer.json gives an added token, or -1.
int64_t added_token_id(const TokenizerFiles& files, const std::string& text) {
  if (!files.tokenizer) return -1;
  return with_frame(files.path("tokenizer.json"), [&]() -> int64_t {
    const Json* list = array_field(*files.tokenizer, "added_tokens");
    if (!list) return -1;
    for (const Json& token : *list)
      if (token.is_object() && text_field(token, "content") == text)
        return int_field(token, "id").value_or(-1);
    return -1;
  });
}

}  // namespace

GgufMetadata special_tokens(const TokenizerFiles& files, const Json& config, int64_t num_tokens) {
  const SpecialTokens tokens(files);
  const std::string prefix = "tokenizer.ggml.";
  GgufMetadata metadata;
  const auto set_id = [&](const Kind& kind, int64_t id) {
    if (id >= 0 && id < num_tokens && !metadata.contains(prefix + kind.id_key))
      metadata.set(prefix + kind.id_key, static_cast<uint32_t>(id));
  };
  for (const Kind& kind : kKinds)
    if (const auto text = tokens.text(kind.name); text && files.config)
      set_id(kind, added_token_id(files, *text));
  for (const Kind& kind : kKinds) {
    // A list of ids, as of several ends, names none that is the one.
    const Json* id = find_field(config, concat(kind.name, "_token_id").c_str());
    if (id && id->is_number_integer() && id->is_number_unsigned() &&
        id->get<uint64_t>() < static_cast<uint64_t>(num_tokens))
      set_id(kind, id->get<int64_t>());
  }
  for (const auto& [name, add] : tokens.added())
    for (const Kind& kind : kKinds)
      if (name == kind.name && kind.add_key) metadata.set(prefix + kind.add_key, add);
  return metadata;
}

namespace {

/// A list of named templates: the one called "default" is the one, the others have names.
GgufMetadata named_templates(const Json& list) {
  const std::string key = "tokenizer.chat_template";
  GgufMetadata metadata;
  std::vector<std::string> names;
  std::optional<std::string> main;
  for (const Json& choice : list) {
    check(choice.is_object(), "key 'chat_template': holds what is no object");
    std::string name = text_field(choice, "name").value_or("");
    const auto text = text_field(choice, "template");
    for (char& c : name)
      if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
    if (name.empty() || !text) continue;
    if (name == "default") {
      main = text;
    } else if (std::find(names.begin(), names.end(), name) == names.end()) {
      names.push_back(name);
      metadata.set(key + '.' + name, *text);
    }
  }
  if (!names.empty())
    metadata.set("tokenizer.chat_templates", GgufArray{GgufValueType::kString, std::move(names)});
  if (main) metadata.set(key, *main);
  return metadata;
}

GgufMetadata templates_of(const Json& value) {
  if (value.is_null()) return {};
  if (value.is_array()) return named_templates(value);
  check(value.is_string(), "key 'chat_template': wants a string or a list, found ",
        value.type_name());
  GgufMetadata metadata;
  if (!value.get<std::string>().empty())
    metadata.set("tokenizer.chat_template", value.get<std::string>());
  return metadata;
}

}  // namespace

GgufMetadata chat_templates(const TokenizerFiles& files) {
  if (!files.config) return {};
  if (files.config->contains("chat_template"))
    return with_frame(files.path("tokenizer_config.json"),
                      [&] { return templates_of((*files.config)["chat_template"]); });
  std::error_code error;
  const std::string jinja = files.path("chat_template.jinja");
  if (std::filesystem::exists(jinja, error)) return templates_of(Json(read_file(jinja)));
  const std::string json_path = files.path("chat_template.json");
  const auto json = read_json_file(json_path);
  if (!json || !json->contains("chat_template")) return {};
  return with_frame(json_path, [&] { return templates_of((*json)["chat_template"]); });
}

}  // namespace nibble
