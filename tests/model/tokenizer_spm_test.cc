#include "model/tokenizer_spm.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "tests/model/tokenizer_metadata.h"

namespace nibble {
namespace {

using Ids = std::vector<int32_t>;

constexpr int32_t kByte = 3, kPiece = 259;  // ids of the first byte token and the first piece

TEST(TokenizerSpm, JoinsByScoreThenFromTheLeft) {
  // Pieces, best score first: 0 bc, 1 ab, 2 aa, 3 a, 4 b, 5 c, 6 ▁
  const SpmTokenizer tokenizer(spm_metadata({"bc", "ab", "aa", "a", "b", "c", "▁"}));
  EXPECT_EQ(tokenizer.encode("abc", false, false), (Ids{kPiece + 6, kPiece + 3, kPiece}));
  EXPECT_EQ(tokenizer.encode("aaa", false, false), (Ids{kPiece + 6, kPiece + 2, kPiece + 3}));
  EXPECT_EQ(tokenizer.encode("abc", true, false), (Ids{1, kPiece + 6, kPiece + 3, kPiece}));
  EXPECT_EQ(tokenizer.encode("", true, false), (Ids{1}));
}

TEST(TokenizerSpm, BytesThatAreNoTokenAreByteTokens) {
  const SpmTokenizer tokenizer(spm_metadata({"▁", "a"}));
  EXPECT_EQ(tokenizer.encode("a\n\xff", false, false),
            (Ids{kPiece, kPiece + 1, kByte + '\n', kByte + 0xff}));
  EXPECT_EQ(tokenizer.encode("é", false, false), (Ids{kPiece, kByte + 0xc3, kByte + 0xa9}));
  for (const std::string text : {"a\n\xff", "é漢🙂", "\xe2\x96", "\x80  a\xf0", "▁"}) {
    const std::string decoded = tokenizer.decode(tokenizer.encode(text, true, false));
    EXPECT_EQ(decoded, text == "▁" ? " " : text);
  }
  // As in llama.cpp, a byte that opens four takes what follows, a space's U+2581 too.
  EXPECT_EQ(tokenizer.encode("\xf0 a", false, false),
            (Ids{kPiece, kByte + 0xf0, kByte + 0xe2, kByte + 0x96, kByte + 0x81, kPiece + 1}));
}

TEST(TokenizerSpm, ASpaceIsPutAtTheStartAndAfterSpecialTokens) {
  const SpmTokenizer tokenizer(spm_metadata({"▁a", "▁", "a"}));
  EXPECT_EQ(tokenizer.encode("a</s>a a", false, true), (Ids{kPiece, 2, kPiece, kPiece}));
  EXPECT_EQ(tokenizer.decode({kPiece, 2, kPiece, kPiece}), "aa a");
  EXPECT_EQ(tokenizer.decode({kPiece, 2, kPiece, kPiece}, true), "a</s>a a");
  GgufMetadata metadata = spm_metadata({"▁a", "▁", "a"});
  metadata.set("tokenizer.ggml.add_space_prefix", false);
  EXPECT_EQ(SpmTokenizer(metadata).encode("a a", false, true), (Ids{kPiece + 2, kPiece}));
  EXPECT_EQ(SpmTokenizer(metadata).decode({kPiece, kPiece}), " a a");
}

// A token with a space inside forbids taking words one by one.
TEST(TokenizerSpm, TokensMaySpanWords) {
  const SpmTokenizer tokenizer(spm_metadata({"a▁", "a▁b", "▁b", "▁", "a", "b"}));
  EXPECT_EQ(tokenizer.encode("a b", false, false), (Ids{kPiece + 3, kPiece + 1}));
}

TEST(TokenizerSpm, RefusesScoresThatDoNotFit) {
  const auto error = [](const GgufMetadata& metadata) -> std::string {
    try {
      SpmTokenizer tokenizer(metadata);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  GgufMetadata metadata = spm_metadata({});
  metadata.set("tokenizer.ggml.scores", floats({1, 2}));
  EXPECT_NE(error(metadata).find("wants one score for each of 259 tokens, found 2"),
            std::string::npos)
      << error(metadata);
  std::vector<float> scores(259, 0.0f);
  scores[7] = std::numeric_limits<float>::quiet_NaN();
  metadata.set("tokenizer.ggml.scores", floats(scores));
  EXPECT_NE(error(metadata).find("the score of token 7"), std::string::npos) << error(metadata);
  metadata.erase("tokenizer.ggml.scores");
  EXPECT_NE(error(metadata).find("tokenizer.ggml.scores"), std::string::npos) << error(metadata);
}

}  // namespace
}  // namespace nibble
