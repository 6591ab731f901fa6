#include "model/tokenizer_characters.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "base/error.h"

namespace nibble {
namespace {

std::vector<uint8_t> bytes_of(const std::string& text) { return {text.begin(), text.end()}; }

TEST(CharacterMap, FindsTheLongestEntryOfMany) {
  std::mt19937 random(5);
  std::map<std::string, std::string> entries;
  while (entries.size() < 20000) {
    std::string key(1 + random() % 5, '\0');
    for (char& c : key) c = static_cast<char>(1 + random() % 255);
    entries[key] = std::string(random() % 3, static_cast<char>('a' + random() % 26));
  }
  const CharacterMap map(bytes_of(compile_character_map(entries)));
  for (int round = 0; round < 20000; ++round) {
    std::string text(6, '\0');
    for (char& c : text) c = static_cast<char>(random() % 256);
    if (round % 2 == 0) text = std::next(entries.begin(), round)->first + text;
    size_t length = text.size();
    while (length > 0 && !entries.contains(text.substr(0, length))) --length;
    const CharacterMap::Match match = map.longest_prefix(text);
    ASSERT_EQ(match.length, length) << round;
    if (length > 0) {
      ASSERT_EQ(match.replacement, entries[text.substr(0, length)]);
    }
  }
}

TEST(CharacterMap, RefusesSizesThatDoNotFit) {
  const auto refusal = [](const std::string& bytes) -> std::string {
    try {
      CharacterMap map(bytes_of(bytes));
      return "was taken";
    } catch (const Error& error) {
      return error.what();
    }
  };
  const std::string whole = compile_character_map({{"a", "b"}});
  EXPECT_EQ(refusal(whole), "was taken");
  EXPECT_EQ(refusal("abcd"), "a character map of 4 bytes");
  EXPECT_EQ(refusal(whole.substr(0, 100)), "the array has 1024 bytes, the map 96");
  EXPECT_EQ(refusal(whole + "c"), "the last replacement does not end");
  std::string odd = whole;
  odd[0] = 1;
  odd[1] = 3;
  EXPECT_EQ(refusal(odd), "the array has 769 bytes, not whole units of 4");
  EXPECT_EQ(CharacterMap().longest_prefix("a").length, 0u);
}

// The sanitizer build sees reads outside.
TEST(CharacterMap, ChangedUnitsLeadNowhereElse) {
  const std::string whole = compile_character_map({{"a", "b"}, {"ab", ""}, {"\xe3\x82\xab", "ka"}});
  std::mt19937 random(6);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = whole;
    for (int change = 0; change < 20; ++change)
      bytes[4 + random() % 1024] = static_cast<char>(random());
    const CharacterMap map(bytes_of(bytes));
    try {
      for (const char* text : {"a", "ab", "abc", "\xe3\x82\xab", "\xff"}) map.longest_prefix(text);
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("leads to"), std::string::npos);
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace nibble
