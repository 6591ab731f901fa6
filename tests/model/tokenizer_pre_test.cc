#include "model/tokenizer_pre.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace nibble {
namespace {

using Words = std::vector<std::string>;

Words split(const std::string& name, const std::string& text) {
  const WordSplitter splitter(find_pre_tokenizer(name).patterns);
  Words words;
  size_t begin = 0;
  for (size_t length : splitter.split(text)) {
    words.push_back(text.substr(begin, length));
    begin += length;
  }
  EXPECT_EQ(begin, text.size());
  return words;
}

TEST(TokenizerPre, Gpt2) {
  EXPECT_EQ(split("gpt-2", "It's 2024,  ok!\n\n x"),
            (Words{"It", "'s", " 2024", ",", " ", " ok", "!", "\n\n", " x"}));
  EXPECT_EQ(split("gpt-2", "IT'S"), (Words{"IT", "'", "S"}));
}

TEST(TokenizerPre, SmollmTakesDigitsOneByOne) {
  EXPECT_EQ(split("smollm", "a 42½"), (Words{"a", " ", "4", "2", "½"}));
}

TEST(TokenizerPre, LlamaTakesThreeDigitsAndAnyCaseContractions) {
  EXPECT_EQ(split("llama-bpe", "WE'LL(ok) 12345\n"),
            (Words{"WE", "'LL", "(ok", ")", " ", "123", "45", "\n"}));
}

TEST(TokenizerPre, Qwen2TakesOneDigit) {
  EXPECT_EQ(split("qwen2", "x=12\r\n"), (Words{"x", "=", "1", "2", "\r\n"}));
}

TEST(TokenizerPre, TekkenSplitsAtCase) {
  EXPECT_EQ(split("tekken", "helloWorld ABC"), (Words{"hello", "World", " ABC"}));
}

TEST(TokenizerPre, DefaultCutsPunctuationAndTriplesOfDigits) {
  EXPECT_EQ(split("default", "a1234+b"), (Words{"a", "123", "4", "+", "b"}));
}

TEST(TokenizerPre, SurrogatesAndTheVowelSeparatorAreSymbols) {
  EXPECT_EQ(split("gpt-2", "a\xed\xa0\x80"), (Words{"a", "\xed\xa0\x80"}));
  EXPECT_EQ(split("gpt-2", " \xe1\xa0\x8e!"), (Words{" \xe1\xa0\x8e!"}));
}

TEST(TokenizerPre, EveryExpressionCompiles) {
  for (const char* name :
       {"default",     "gpt-2",      "smollm", "llama-bpe", "dbrx",   "chatglm-bpe",
        "glm4",        "qwen2",      "qwen35", "ufakzeka",  "laguna", "minicpm5",
        "bailingmoe",  "seed-coder", "tekken", "gpt-4o",    "falcon", "deepseek-coder",
        "deepseek-v3", "bloom",      "viking"})
    EXPECT_FALSE(split(name, "One 23 'll, 漢字 \n\t e\u0301").empty()) << name;
  EXPECT_THROW(find_pre_tokenizer("kimi-k2"), Error);
}

TEST(TokenizerPre, RunsOfAnyLengthAreSplit) {
  for (const char* name : {"gpt-2", "llama-bpe", "tekken", "deepseek-v3"})
    for (const char* unit : {"a", " ", "漢", "!", "\n", "1", "A"}) {
      std::string text;
      for (int i = 0; i < 100'000; ++i) text += unit;
      EXPECT_FALSE(split(name, text).empty());
    }
}

}  // namespace
}  // namespace nibble
