#include "model/hf/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "model/tokenizer_pre.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

const char* kO200k =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

Json split(const std::string& expression) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", expression}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}
Json bytes(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", use_regex}};
}
const Json kDigits = {{"type", "Digits"}, {"individual_digits", true}};

std::string name_of(const std::vector<Json>& steps, bool ignore_merges = false) {
  const Json pre =
      steps.size() == 1 ? steps[0] : Json{{"type", "Sequence"}, {"pretokenizers", steps}};
  return pre_tokenizer_name(
      {{"model", {{"ignore_merges", ignore_merges}}}, {"pre_tokenizer", pre}});
}
std::string refusal(const std::vector<Json>& steps) {
  try {
    return "took it for " + name_of(steps);
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(PreTokenizerName, KnowsTheExpressionsOfTheFamilies) {
  EXPECT_EQ(name_of({bytes(true)}), "gpt-2");
  EXPECT_EQ(name_of({kDigits, bytes(true)}), "smollm");
  EXPECT_EQ(name_of({split(kQwen2), bytes(false)}), "qwen2");
  EXPECT_EQ(name_of({split(kLlama3), bytes(false)}, true), "llama-bpe");
  EXPECT_EQ(name_of({split(kLlama3), bytes(false)}, false), "dbrx");
  EXPECT_EQ(name_of({split(kO200k), bytes(false)}), "gpt-4o");
}

TEST(PreTokenizerName, NamesWhatItsOwnTokenizerHas) {
  for (const std::string name :
       {"gpt-2", "smollm", "qwen2", "llama-bpe", "dbrx", "tekken", "gpt-4o", "qwen35"})
    EXPECT_NO_THROW(find_pre_tokenizer(name)) << name;
  EXPECT_TRUE(find_pre_tokenizer("llama-bpe").ignore_merges);
  EXPECT_FALSE(find_pre_tokenizer("dbrx").ignore_merges);
}

TEST(PreTokenizerName, RefusesWhatCutsOtherwise) {
  EXPECT_NE(refusal({split("[a-z]+"), bytes(false)}).find("--pre"), std::string::npos);
  EXPECT_NE(refusal({split(kQwen2)}).find("like none"), std::string::npos);
  EXPECT_NE(refusal({kDigits, split(kQwen2), bytes(false)}).find("like none"), std::string::npos);
  Json merged = split(kQwen2);
  merged["behavior"] = "MergedWithNext";
  EXPECT_NE(refusal({merged, bytes(false)}).find("'MergedWithNext'"), std::string::npos);
  EXPECT_NE(refusal({Json{{"type", "Whitespace"}}}).find("'Whitespace'"), std::string::npos);
  Json spaced = bytes(true);
  spaced["add_prefix_space"] = true;
  EXPECT_NE(refusal({spaced}).find("adds a space"), std::string::npos);
}

}  // namespace
}  // namespace nibble
