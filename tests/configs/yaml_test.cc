#include "configs/yaml.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "base/error.h"

namespace nibble {
namespace {

std::string error_of(const std::string& text) {
  try {
    parse_yaml(text, "f.yaml");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return error.what();
  }
  return "no error";
}

std::string repeated(const std::string& piece, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += piece;
  return out;
}

TEST(Yaml, RemembersPlaces) {
  const YamlNode root = parse_yaml("a: 1\nb:\n  c: [x, 'y z']\n", "f.yaml");
  const YamlNode* c = root.find("b")->find("c");
  ASSERT_NE(c, nullptr);
  EXPECT_EQ(c->key_place, "f.yaml:3:3");
  EXPECT_EQ(c->place, "f.yaml:3:6");
  ASSERT_EQ(c->items.size(), 2u);
  EXPECT_EQ(c->items[1].scalar, "y z");
  EXPECT_TRUE(c->items[1].quoted);
  EXPECT_FALSE(c->items[0].quoted);
  EXPECT_EQ(c->items[1].place, "f.yaml:3:10");
}

TEST(Yaml, NothingIsNull) {
  EXPECT_EQ(parse_yaml("", "f.yaml").kind, YamlNode::Kind::kNull);
  for (const char* text : {"a:", "a: ~", "a: null"})
    EXPECT_EQ(parse_yaml(text, "f.yaml").find("a")->kind, YamlNode::Kind::kNull) << text;
  EXPECT_EQ(parse_yaml("a: 'null'", "f.yaml").find("a")->kind, YamlNode::Kind::kScalar);
}

TEST(Yaml, RefusesWhatCouldBeMisread) {
  EXPECT_EQ(error_of("a: 1\na: 2\n"), "f.yaml:2:1: key 'a' is given twice");
  EXPECT_EQ(error_of("a: &x 1\n"),
            "f.yaml:1:4: anchors (&name) are not taken: write the value out");
  EXPECT_NE(error_of("? [1]\n: 2\n").find("a key must be text"), std::string::npos);
  EXPECT_NE(error_of("a: 1\n---\nb: 2\n").find("a second document"), std::string::npos);
  EXPECT_NE(error_of("a: [1, 2\n").find("f.yaml:"), std::string::npos);
  EXPECT_NE(error_of("a: b: c\n").find("f.yaml:1:"), std::string::npos);
}

TEST(Yaml, HostileTextIsRefusedAtOnce) {
  const auto start = std::chrono::steady_clock::now();
  std::string bomb = "a: &a [x]\n";
  for (char c = 'b'; c < 'z'; ++c)
    bomb += concat(c, ": &", c, " [*", char(c - 1), ", *", char(c - 1), "]\n");
  EXPECT_NE(error_of(bomb).find("anchors"), std::string::npos);
  EXPECT_NE(error_of("a: " + repeated("[", 400) + repeated("]", 400)).find("nested more than"),
            std::string::npos);
  EXPECT_NE(error_of(repeated("- ", 100'000)).find("nested more than"), std::string::npos);
  for (const char* open : {"[", "{", "{a: ", "[a, ", "? ", "a: [", "&a "})
    EXPECT_NE(error_of(repeated(open, 30'000)), "no error") << open;
  EXPECT_NE(error_of(std::string(1 << 20, 'x')).find("too long"), std::string::npos);
  std::string keys;
  for (int i = 0; i < 20'000; ++i) keys += concat("k", i, ": 1\n");
  EXPECT_NE(error_of(keys).find("keys in one group"), std::string::npos);
  // Ten seconds is far above what refusing takes (well under one) and far below what expanding
  // would.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST(Yaml, BytesOfAnyKindGiveATreeOrAnError) {
  uint32_t state = 1;
  const std::string alphabet = "ab:-[]{},&*!|>'\"%@`#?\n\t \\\0\xff\xc3";
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (int i = 0; i < 40; ++i) {
      state = state * 1664525u + 1013904223u;
      text += alphabet[(state >> 16) % alphabet.size()];
    }
    try {
      parse_yaml(text, "f.yaml");
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).rfind("f.yaml", 0), 0u) << error.what();
    }
  }
}

TEST(Yaml, QuotedTextReadsBack) {
  for (const std::string text :
       {"plain", "runs/a-b_1.0", "", "null", "~", "a: b", "two\nlines", "tab\tand \"quotes\" \\",
        "- x", "#no", "*no", "caf\xc3\xa9", "'", " lead", "\x01", "[a, b]", "{a}", "true", "12"}) {
    const YamlNode root = parse_yaml(concat("k: ", yaml_quoted(text)), "f.yaml");
    EXPECT_EQ(root.find("k")->kind, YamlNode::Kind::kScalar) << text;
    EXPECT_EQ(root.find("k")->scalar, text);
    const YamlNode list = parse_yaml(concat("[", yaml_quoted(text), ", b]"), "f.yaml");
    ASSERT_EQ(list.items.size(), 2u) << text;
    EXPECT_EQ(list.items[0].scalar, text);
  }
}

}  // namespace
}  // namespace nibble
