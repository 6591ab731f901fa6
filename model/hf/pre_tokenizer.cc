#include "model/hf/pre_tokenizer.h"

#include <vector>

#include "base/error.h"
#include "model/hf/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

// The steps of a pre-tokenizer in one way of writing; an expression stands for itself.
const std::string kDigits = "single digits", kBytes = "bytes",
                  kGpt2Bytes = "GPT-2's expression, bytes";
const std::string kLlama3 = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
                            R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string kQwen2 = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
                           R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string kQwen35 = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N})"
                            R"(| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Of GPT-4o, which Phi-4-mini has too.
const std::string kO200k =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Known {
  const char* name;
  std::vector<std::string> steps;
  bool ignores_merges;  // words that are tokens are not merged anew
};

const std::vector<Known>& known_pre_tokenizers() {
  static const std::vector<Known> kKnown = {
      {"gpt-2", {kGpt2Bytes}, false},      {"smollm", {kDigits, kGpt2Bytes}, false},
      {"qwen2", {kQwen2, kBytes}, false},  {"llama-bpe", {kLlama3, kBytes}, true},
      {"dbrx", {kLlama3, kBytes}, false},  {"tekken", {kTekken, kBytes}, true},
      {"gpt-4o", {kO200k, kBytes}, false}, {"qwen35", {kQwen35, kBytes}, false},
  };
  return kKnown;
}

std::string split_step(const Json& step) {
  const Json* pattern = object_field(step, "pattern");
  check(pattern, "pre-tokenizer 'Split' has no 'pattern'");
  const auto expression = text_field(*pattern, "Regex");
  check(expression.has_value(), "pre-tokenizer 'Split' has no expression");
  const std::string behavior = text_field(step, "behavior").value_or("");
  const bool invert = bool_field(step, "invert").value_or(false);
  check(behavior == (invert ? "Removed" : "Isolated"), "pre-tokenizer 'Split' is '", behavior,
        "'; nibble knows Isolated, and Removed with invert");
  return *expression;
}

std::string read_step(const Json& step) {
  const std::string type = text_field(step, "type").value_or("");
  if (type == "Split") return split_step(step);
  if (type == "Digits") {
    check(bool_field(step, "individual_digits").value_or(false),
          "pre-tokenizer 'Digits' keeps digits together; nibble knows single ones");
    return kDigits;
  }
  if (type == "ByteLevel") {
    check(!bool_field(step, "add_prefix_space").value_or(true),
          "pre-tokenizer 'ByteLevel' adds a space; nibble knows none that does");
    return bool_field(step, "use_regex").value_or(true) ? kGpt2Bytes : kBytes;
  }
  fail("pre-tokenizer '", type, "'; nibble knows Sequence, Split, Digits and ByteLevel");
}

}  // namespace

std::string pre_tokenizer_name(const Json& tokenizer) {
  const Json* model = object_field(tokenizer, "model");
  const Json* pre = object_field(tokenizer, "pre_tokenizer");
  check(model && pre, "has no 'model' or no 'pre_tokenizer'");
  const bool ignores = bool_field(*model, "ignore_merges").value_or(false);
  std::vector<std::string> steps;
  for (const Json& step : steps_of(*pre, "pretokenizers")) steps.push_back(read_step(step));
  std::string names;
  for (const Known& known : known_pre_tokenizers()) {
    if (known.steps == steps && known.ignores_merges == ignores) return known.name;
    names += concat(names.empty() ? "" : ", ", known.name);
  }
  fail("the pre-tokenizer cuts text like none that nibble recognizes (", names,
       "); where llama.cpp has a name for it, --pre says it");
}

}  // namespace nibble
