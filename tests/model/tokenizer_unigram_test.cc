#include "model/tokenizer_unigram.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/model/tokenizer_metadata.h"

namespace nibble {
namespace {

using Ids = std::vector<int32_t>;

struct Piece {
  std::string text;
  float score;
  int32_t type = 1;
};

/// Ids: 0 the padding, 1 the end, 2 the unknown token, from 3 on the pieces.
GgufMetadata unigram(const std::vector<Piece>& pieces) {
  std::vector<std::string> tokens = {"<pad>", "</s>", "<unk>"};
  std::vector<int32_t> types = {3, 3, 2};
  std::vector<float> scores = {0, 0, 0};
  for (const Piece& piece : pieces) {
    tokens.push_back(piece.text);
    types.push_back(piece.type);
    scores.push_back(piece.score);
  }
  GgufMetadata metadata;
  metadata.set("tokenizer.ggml.model", std::string("t5"));
  metadata.set("tokenizer.ggml.tokens", strings(tokens));
  metadata.set("tokenizer.ggml.token_type", ints(types));
  metadata.set("tokenizer.ggml.scores", floats(scores));
  return metadata;
}

Ids ids(const GgufMetadata& metadata, std::string_view text) {
  return UnigramTokenizer(metadata).encode(text, false, false);
}

TEST(TokenizerUnigram, TakesTheHighestSumAndOfEqualsTheLongestLastToken) {
  // 3 a, 4 b, 5 c, 6 ab, 7 bc, 8 abc
  const GgufMetadata metadata =
      unigram({{"a", -1}, {"b", -2}, {"c", -3}, {"ab", -2}, {"bc", -4}, {"abc", -9}});
  EXPECT_EQ(ids(metadata, "ab"), (Ids{6}));
  EXPECT_EQ(ids(metadata, "abc"), (Ids{3, 7})) << "a bc and ab c are both -5";
  EXPECT_EQ(ids(metadata, ""), Ids{});
  EXPECT_EQ(UnigramTokenizer(metadata).encode("ab", true, false), (Ids{6, 1})) << "ends by default";
}

TEST(TokenizerUnigram, CharactersThatAreNoTokenAreOneUnknownToken) {
  const GgufMetadata metadata = unigram({{"▁", -2}, {"a", -1}, {"xa", -15}, {"ya", -20}});
  EXPECT_EQ(ids(metadata, "a漢🙂a"), (Ids{4, 2, 4}));
  EXPECT_EQ(ids(metadata, "漢 漢"), (Ids{2, 3, 2}));
  EXPECT_EQ(ids(metadata, "a\xff\xc3"), (Ids{4, 2}));
  // 10 less than the least score, -20: one token is better than two of which one is unknown.
  EXPECT_EQ(ids(metadata, "ya"), (Ids{6}));
  EXPECT_EQ(ids(metadata, "xa"), (Ids{5}));
  EXPECT_EQ(ids(unigram({{"a", -1}, {"xa", -13}}), "xa"), (Ids{4}));
  // Without a token for a space, unknown tokens are one across words.
  EXPECT_EQ(ids(unigram({{"a", -1}}), "a 漢 漢 a"), (Ids{3, 2, 3}));
}

TEST(TokenizerUnigram, SpacesAreAddedAndMergedAsTheMetadataSays) {
  GgufMetadata metadata = unigram({{"▁", -2}, {"a", -1}, {"▁a", -2}});
  EXPECT_EQ(ids(metadata, "a  a "), (Ids{4, 3, 5, 3}));
  metadata.set("tokenizer.ggml.add_space_prefix", true);
  EXPECT_EQ(ids(metadata, "a  a "), (Ids{5, 3, 5, 3}));
  EXPECT_EQ(ids(metadata, "  "), (Ids{3, 3}));
  metadata.set("tokenizer.ggml.remove_extra_whitespaces", true);
  EXPECT_EQ(ids(metadata, " a  a "), (Ids{5, 5}));
  EXPECT_EQ(ids(metadata, "  "), Ids{});
  const UnigramTokenizer tokenizer(metadata);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("a a", true, false)), "a a");
  EXPECT_EQ(tokenizer.decode({5, 2, 5}, true), "a<unk>a");
}

TEST(TokenizerUnigram, TokensMaySpanWordsAndStandForThemselves) {
  EXPECT_EQ(ids(unigram({{"▁", -2}, {"a", -1}, {"a▁a", -1}}), "a a"), (Ids{5}));
  // User-defined: always cut out, and worth 0.
  EXPECT_EQ(ids(unigram({{"a", -1}, {"b", -1}, {"ab", -50, 4}}), "aab"), (Ids{3, 5}));
}

TEST(TokenizerUnigram, CharactersAreReplacedFirst) {
  GgufMetadata metadata = unigram({{"▁", -2}, {"a", -1}, {"fi", -1}});
  const std::string map = compile_character_map({{"ﬁ", "fi"}, {"\n", " "}, {"é", "a"}, {"x", ""}});
  metadata.set("tokenizer.ggml.precompiled_charsmap",
               GgufArray{GgufValueType::kUint8, std::vector<uint8_t>(map.begin(), map.end())});
  EXPECT_EQ(ids(metadata, "ﬁ\nxéx"), (Ids{5, 3, 4}));
}

TEST(TokenizerUnigram, RefusesMetadataThatDoesNotFit) {
  const auto error = [](const GgufMetadata& metadata) -> std::string {
    try {
      UnigramTokenizer tokenizer(metadata);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  GgufMetadata metadata = unigram({{"a", -1}});
  metadata.set("tokenizer.ggml.precompiled_charsmap", std::string("a"));
  EXPECT_EQ(error(metadata),
            "metadata key 'tokenizer.ggml.precompiled_charsmap': wants an array of bytes, found "
            "string");
  metadata.set("tokenizer.ggml.precompiled_charsmap", floats({1}));
  EXPECT_NE(error(metadata).find("found one of float32"), std::string::npos) << error(metadata);
  metadata.set("tokenizer.ggml.precompiled_charsmap",
               GgufArray{GgufValueType::kInt8, std::vector<int8_t>(3)});
  EXPECT_NE(error(metadata).find("a character map of 3 bytes"), std::string::npos);
  metadata = unigram({{"a", -1}});
  metadata.set("tokenizer.ggml.scores", floats({1}));
  EXPECT_NE(error(metadata).find("wants one score for each of 4 tokens, found 1"),
            std::string::npos)
      << error(metadata);
}

}  // namespace
}  // namespace nibble
