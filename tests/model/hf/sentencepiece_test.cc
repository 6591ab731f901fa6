#include "model/hf/sentencepiece.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>

#include "base/error.h"

namespace nibble {
namespace {

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}
std::string field(uint64_t number, const std::string& bytes) {
  return varint(number << 3 | 2) + varint(bytes.size()) + bytes;
}
std::string field(uint64_t number, uint64_t value) { return varint(number << 3) + varint(value); }
std::string field(uint64_t number, float value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return varint(number << 3 | 5) + bytes;
}

std::string piece(const std::string& text, float score, uint64_t type) {
  return field(1, field(1, text) + field(2, score) + field(3, type));
}

std::string sample() {
  const std::string trainer =
      field(3, uint64_t{2}) + field(35, uint64_t{1}) + field(200, std::string("later fields"));
  const std::string normalizer = field(2, std::string("a map")) + field(4, uint64_t{0});
  return piece("<unk>", 0, 2) + piece("<s>", 0, 3) +
         field(1, field(1, std::string("▁a")) + field(2, -1.5f)) + piece("<0x0A>", 0, 6) +
         field(2, trainer) + field(3, normalizer);
}

TEST(SentencePiece, ReadsPiecesAndTheModelsType) {
  const SentencePieceModel model = parse_sentencepiece(sample());
  ASSERT_EQ(model.pieces.size(), 4u);
  EXPECT_EQ(model.model_type, 2);
  EXPECT_EQ(model.pieces[0].text, "<unk>");
  EXPECT_EQ(model.pieces[0].type, 2);
  EXPECT_EQ(model.pieces[2].text, "▁a");
  EXPECT_EQ(model.pieces[2].score, -1.5f);
  EXPECT_EQ(model.pieces[2].type, 1) << "normal where the file is silent";
  EXPECT_EQ(model.pieces[3].type, 6);
  EXPECT_TRUE(model.byte_fallback);
  EXPECT_FALSE(model.spaces_are_suffixes);
  EXPECT_EQ(model.character_map, "a map");
  EXPECT_TRUE(model.adds_space && model.escapes_spaces);
  EXPECT_FALSE(model.merges_spaces);
}

TEST(SentencePiece, RefusesWhatIsNoMessage) {
  const auto refusal = [](const std::string& bytes) -> std::string {
    try {
      parse_sentencepiece(bytes);
      return "was taken";
    } catch (const Error& error) {
      return error.what();
    }
  };
  EXPECT_EQ(refusal(""), "holds no pieces: this is no sentencepiece model");
  EXPECT_NE(refusal(piece("x", 0, 7)).find("unknown type 7"), std::string::npos);
  EXPECT_NE(refusal(varint(1 << 3 | 2) + varint(uint64_t{1} << 60)).find("byte offset"),
            std::string::npos);
  EXPECT_NE(refusal(std::string(11, '\xff')).find("more than 64 bits"), std::string::npos);
  EXPECT_NE(refusal(field(1, uint64_t{5})).find("of another kind"), std::string::npos);
  EXPECT_NE(refusal(varint(1 << 3 | 3)).find("wire type"), std::string::npos);
}

// Any change is refused as an Error, or gives some other vocabulary; the sanitizer build sees reads
// outside.
TEST(SentencePiece, SurvivesEveryCutAndManyChanges) {
  const std::string whole = sample();
  const auto read = [](const std::string& bytes) {
    try {
      parse_sentencepiece(bytes);
    } catch (const Error&) {
    }
  };
  for (size_t size = 0; size < whole.size(); ++size) read(whole.substr(0, size));
  std::mt19937 random(3);
  for (int round = 0; round < 5000; ++round) {
    std::string bytes = whole;
    for (int change = 0; change < 3; ++change)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    read(bytes);
  }
}

}  // namespace
}  // namespace nibble
