#include "model/tokenizer_bpe.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/model/tokenizer_metadata.h"

namespace nibble {
namespace {

using Ids = std::vector<int32_t>;

TEST(TokenizerBpe, MergesByRankThenFromTheLeft) {
  // 256 ab, 257 bc, 258 aa, 259 aab
  const BpeTokenizer tokenizer(
      bpe_metadata("gpt-2", byte_tokens({"ab", "bc", "aa", "aab"}), {"b c", "a b", "a a", "aa b"}));
  EXPECT_EQ(tokenizer.encode("abc", false, false), (Ids{'a', 257}));
  EXPECT_EQ(tokenizer.encode("ab", false, false), (Ids{256}));
  EXPECT_EQ(tokenizer.encode("aaa", false, false), (Ids{258, 'a'}));
  EXPECT_EQ(tokenizer.encode("aab", false, false), (Ids{'a', 256}));  // "a b" comes before "a a"
  EXPECT_EQ(tokenizer.encode("", false, false), Ids{});
}

TEST(TokenizerBpe, IgnoreMergesTakesWholeWords) {
  const std::vector<std::string> tokens = byte_tokens({"ab", "bc", "abc"}), merges = {"b c", "a b"};
  EXPECT_EQ(BpeTokenizer(bpe_metadata("qwen2", tokens, merges)).encode("abc", false, false),
            (Ids{'a', 257}));
  EXPECT_EQ(BpeTokenizer(bpe_metadata("llama-bpe", tokens, merges)).encode("abc", false, false),
            (Ids{258}));
}

TEST(TokenizerBpe, AMergedTextThatIsNoTokenFallsApartIntoBytes) {
  const BpeTokenizer tokenizer(bpe_metadata("gpt-2", byte_tokens({}), {"a b"}));
  EXPECT_EQ(tokenizer.encode("xab", false, false), (Ids{'x', 'a', 'b'}));
}

TEST(TokenizerBpe, AddsBosAndEosAsTheMetadataSays) {
  GgufMetadata metadata = bpe_metadata("llama-bpe", byte_tokens({"<s>", "</s>"}), {"a b"});
  metadata.set("tokenizer.ggml.bos_token_id", uint32_t{256});
  metadata.set("tokenizer.ggml.eos_token_id", uint32_t{257});
  EXPECT_EQ(BpeTokenizer(metadata).encode("a", true, false), (Ids{'a'}));
  metadata.erase("tokenizer.ggml.add_bos_token");  // llama-bpe adds it where nothing is said
  EXPECT_EQ(BpeTokenizer(metadata).encode("a", true, false), (Ids{256, 'a'}));
  EXPECT_EQ(BpeTokenizer(metadata).encode("a", false, false), (Ids{'a'}));
  metadata.set("tokenizer.ggml.add_eos_token", true);
  EXPECT_EQ(BpeTokenizer(metadata).encode("", true, false), (Ids{256, 257}));
}

TEST(TokenizerBpe, SpecialTokensAreCutOutLongestFirst) {
  const std::vector<std::string> tokens = byte_tokens({"<x>", "<x><y>", "<u>"});
  std::vector<int32_t> types(256, 1);
  types.insert(types.end(), {3, 3, 4});  // control, control, user-defined
  GgufMetadata metadata = bpe_metadata("gpt-2", tokens, {"a b"});
  metadata.set("tokenizer.ggml.token_type", ints(types));
  const BpeTokenizer tokenizer(metadata);
  EXPECT_EQ(tokenizer.encode("a<x><y><x>b<u>", false, true), (Ids{'a', 257, 256, 'b', 258}));
  EXPECT_EQ(tokenizer.encode("<x><u>", false, false), (Ids{'<', 'x', '>', 258}));
  EXPECT_EQ(tokenizer.decode({'a', 257, 258}), "a<u>");
  EXPECT_EQ(tokenizer.decode({'a', 257, 258}, true), "a<x><y><u>");
  EXPECT_THROW(tokenizer.decode({259}), Error);
  EXPECT_THROW(tokenizer.decode({-1}), Error);
}

// The byte tokens' ids are their bytes, so what is encoded can be read off.
TEST(TokenizerBpe, BytesThatAreNotUtf8BecomeReplacementCharacters) {
  const BpeTokenizer tokenizer(bpe_metadata("gpt-2", byte_tokens({}), {"a b"}));
  const auto round_trip = [&](const std::string& text) {
    return tokenizer.decode(tokenizer.encode(text, false, false));
  };
  const std::string bad = "\xef\xbf\xbd";
  EXPECT_EQ(round_trip("a\xff"
                       "b"),
            "a" + bad + "b");
  EXPECT_EQ(round_trip("\xe2\x82"), bad + bad);
  EXPECT_EQ(round_trip("\x80 \xc3"), bad + " " + bad);
  EXPECT_EQ(round_trip("\xf7\xbf\xbf\xbf"), bad + bad + bad + bad);  // beyond U+10FFFF
  EXPECT_EQ(round_trip("\xed\xa0\x80"), "\xed\xa0\x80");             // a surrogate stays
  EXPECT_EQ(round_trip("\xc1\x81"), "A");  // an overlong form is shortened
  EXPECT_EQ(round_trip(std::string("a\0\x01\x7f\n", 5)), std::string("a\0\x01\x7f\n", 5));
  EXPECT_EQ(round_trip("é漢🙂\u00ad"), "é漢🙂\u00ad");
}

TEST(TokenizerBpe, TakesLongWords) {
  const BpeTokenizer tokenizer(
      bpe_metadata("llama-bpe", byte_tokens({"aa", "aaaa"}), {"a a", "aa aa"}));
  const Ids ids = tokenizer.encode(std::string(400'000, 'a'), false, false);
  EXPECT_EQ(ids, Ids(100'000, 257));
}

}  // namespace
}  // namespace nibble
