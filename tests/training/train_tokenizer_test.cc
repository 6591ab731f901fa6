// The tokenizer that a new model gets: nibble reads it as the sentencepiece library itself does.
#include "training/train_tokenizer.h"

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "io/atomic_file.h"
#include "model/tokenizer.h"
#include "tests/io/temporary_folder.h"
#include "training/data.h"

namespace nibble {
namespace {

using Ids = std::vector<int32_t>;

constexpr int64_t kVocabSize = 700;

/// Some sources of this project.
std::vector<std::string> texts() {
  std::vector<std::string> all;
  const std::filesystem::path root = NIBBLE_SOURCE_DIR;
  for (const char* name : {"training/data.cc", "training/learner.cc", "model/llama.cc",
                           "configs/yaml.cc", "io/gguf.h", "scripts/python_text.py"})
    all.push_back(read_file((root / name).string()));
  return all;
}

class TrainTokenizerTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    model_ = train_tokenizer(texts(), kVocabSize);
    ours_ = Tokenizer::from_metadata(tokenizer_metadata(model_));
    ASSERT_TRUE(library_.LoadFromSerializedProto(model_).ok());
  }
  static Ids encode(const std::string& text) { return ours_->encode(text, false, false); }
  static Ids library_encode(const std::string& text) {
    const std::vector<int> ids = library_.EncodeAsIds(text);
    return {ids.begin(), ids.end()};
  }
  static std::string piece(int32_t id) { return library_.IdToPiece(id); }

  inline static std::string model_;
  inline static std::unique_ptr<Tokenizer> ours_;
  inline static sentencepiece::SentencePieceProcessor library_;
};

TEST_F(TrainTokenizerTest, WholeTextsHaveTheLibrarysIds) {
  for (const std::string& text : texts()) EXPECT_EQ(encode(text), library_encode(text));
  // Unseen text, and far from what it was trained on.
  const std::filesystem::path root = NIBBLE_SOURCE_DIR;
  for (const char* name : {"README.md", "model/llama.h", "LICENSE", "scripts/setup"}) {
    const std::string text = read_file((root / name).string());
    EXPECT_EQ(encode(text), library_encode(text)) << name;
  }
}

TEST_F(TrainTokenizerTest, OddTextsHaveTheLibrarysIdsAndComeBack) {
  for (const std::string text :
       {"", "x", " x", "  x", "x ", "\n", "\n\n    return x\n", "a\tb\r\nc", "0123456789 12.5e-3",
        "é漢字かな🙂 ½ e\u0301 \u00a0\u2003\u3000|", "▁ ▁▁a", "________", "((((()))))",
        "<unk", "<0x0A>",
        "                                                                  deep"}) {
    EXPECT_EQ(encode(text), library_encode(text)) << text;
    if (text.find("▁") != std::string::npos) continue;  // it stands for a space
    EXPECT_EQ(ours_->decode(encode(text)), text);
  }
}

TEST_F(TrainTokenizerTest, HasTheSizeTheSpecialTokensAndAllBytes) {
  const GgufMetadata metadata = tokenizer_metadata(model_);
  EXPECT_EQ(ours_->vocab_size(), kVocabSize);
  const std::vector<std::string>& tokens = metadata.get_strings("tokenizer.ggml.tokens");
  ASSERT_EQ(static_cast<int64_t>(tokens.size()), kVocabSize);
  EXPECT_EQ(std::vector<std::string>(tokens.begin(), tokens.begin() + 4),
            (std::vector<std::string>{"<unk>", "<s>", "</s>", "<0x00>"}));
  EXPECT_EQ(tokens[258], "<0xFF>");
  std::vector<int64_t> wanted(kVocabSize, 1);
  wanted[0] = 2;
  wanted[1] = wanted[2] = 3;
  std::fill(wanted.begin() + 3, wanted.begin() + 259, 6);
  EXPECT_EQ(metadata.get_ints("tokenizer.ggml.token_type"), wanted);
  EXPECT_EQ(ours_->bos(), 1);
  EXPECT_EQ(ours_->eos(), 2);
  EXPECT_EQ(ours_->encode("", true, false), Ids{1});
}

TEST_F(TrainTokenizerTest, CodeIsCutAsItShouldBe) {
  EXPECT_EQ(encode("2026").size(), 4u) << "digits stand alone";
  EXPECT_EQ(piece(encode("return")[0]).substr(0, 1), "r") << "no space is put before a text";
  EXPECT_EQ(encode("\n"), Ids{3 + '\n'}) << "a line's end is a byte token";
  const auto deep = encode("x\n        return");
  EXPECT_TRUE(std::any_of(deep.begin(), deep.end(), [](int32_t id) {
    return piece(id).find("▁▁▁▁") != std::string::npos;
  })) << "an indentation is no row of single spaces";
  const std::string text = read_file(std::string(NIBBLE_SOURCE_DIR) + "/model/llama.h");
  EXPECT_LT(encode(text).size(), text.size() / 2) << "two bytes a token at least";
}

TEST_F(TrainTokenizerTest, EqualTextsGiveEqualBytes) {
  EXPECT_TRUE(train_tokenizer(texts(), kVocabSize) == model_);
}

TEST_F(TrainTokenizerTest, WhatCannotBeTrainedIsSaid) {
  const auto error = [](const std::vector<std::string>& texts, int64_t size) -> std::string {
    try {
      train_tokenizer(texts, size);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_NE(error({"a b c\n"}, 5000).find("no tokenizer of 5000 tokens from 1 documents"),
            std::string::npos)
      << error({"a b c\n"}, 5000);
  EXPECT_NE(error({}, 300).find("no tokenizer of 300 tokens"), std::string::npos);
  EXPECT_NE(error({""}, 300).find("no tokenizer of 300 tokens"), std::string::npos);
  EXPECT_NE(error(texts(), 259).find("wants at least 260"), std::string::npos);
  try {
    tokenizer_metadata("not a model");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("does not read this model"), std::string::npos);
  }
}

/// One token a byte: what is held out can be read from it.
class ByteTokenizer : public Tokenizer {
 public:
  Ids encode(std::string_view text, bool, bool) const override {
    Ids ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(const Ids& ids, bool) const override { return {ids.begin(), ids.end()}; }
  std::vector<size_t> byte_ends(const Ids&) const override { return {}; }
  int64_t vocab_size() const override { return 256; }
  int32_t bos() const override { return -1; }
  int32_t eos() const override { return -1; }
  bool add_bos() const override { return false; }
  bool is_end_of_generation(int32_t) const override { return false; }
};

TEST(TokenizerSample, LeavesOutWhatIsHeldOut) {
  TemporaryFolder folder;
  DataOptions options;
  options.files = {folder.file("rows.jsonl")};
  options.sequence_length = 8;
  std::ofstream file(options.files[0]);
  for (int i = 0; i < 300; ++i)
    file << nlohmann::json{{"text", concat("<", i, ">\n", std::string(20 + i % 7, 'x'), "\n")}}
                .dump()
         << "\n";
  file.close();
  for (const double held_out : {0.01, 0.1, 0.2}) {
    for (const uint64_t seed : {1, 2, 3}) {
      options.held_out = held_out;
      const TextData data = TextData::load(options, ByteTokenizer(), seed);
      std::string text;
      const torch::Tensor tokens = data.held_out.tokens.flatten();
      for (int64_t i = 0; i < tokens.numel(); ++i)
        text += static_cast<char>(tokens[i].item<int64_t>());
      ASSERT_NE(text.find('<'), std::string::npos);
      int64_t bytes = 0;
      for (const std::string& document : tokenizer_sample(options, seed)) {
        bytes += static_cast<int64_t>(document.size());
        EXPECT_EQ(text.find(document.substr(0, document.find('\n'))), std::string::npos)
            << document << " is held out, share " << held_out << ", seed " << seed;
      }
      EXPECT_GT(bytes, data.num_bytes / 4);
      EXPECT_LE(bytes, data.num_bytes / 2);
    }
  }
}

TEST(TokenizerSample, OneLongTextGivesItsBeginning) {
  TemporaryFolder folder;
  DataOptions options;
  options.files = {folder.file("text.txt")};
  std::string text;
  for (int i = 0; i < 1000; ++i) text += concat("line ", i, "\n");
  std::ofstream(options.files[0]) << text;
  const std::vector<std::string> sample = tokenizer_sample(options, 1);
  ASSERT_EQ(sample.size(), 1u);
  EXPECT_EQ(text.substr(0, sample[0].size()), sample[0]);
  EXPECT_TRUE(sample[0].ends_with('\n')) << "whole lines";
  EXPECT_GT(sample[0].size(), text.size() / 3);
  EXPECT_LT(sample[0].size(), text.size() / 2);
}

}  // namespace
}  // namespace nibble
