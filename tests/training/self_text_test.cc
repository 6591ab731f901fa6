// Text that a model writes: rows that training reads, the same for the same seed, and each drawn
// from the model's own probabilities.
#include "training/self_text.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "io/atomic_file.h"
#include "model/generate.h"
#include "model/tokenizer.h"
#include "tests/io/temporary_folder.h"
#include "training/data.h"

namespace nibble {
namespace {

const std::string kModel =
    std::string(NIBBLE_SOURCE_DIR) + "/../shared/data/models/stories260K/stories260K-f32.v3.gguf";

class SelfTextTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kModel)) GTEST_SKIP() << "no " << kModel;
    Progress::set_quiet(true);
    source_ = std::make_unique<GgufFile>(GgufFile::open(kModel));
    model_ = load_model(*source_);
    tokenizer_ = Tokenizer::from_metadata(source_->metadata());
    options_.data.sequence_length = 48;
    self_.tokens = 300;
  }
  std::vector<nlohmann::json> rows() {
    write_self_text(*model_, source_->metadata(), options_, self_, path_);
    std::vector<nlohmann::json> rows;
    std::istringstream lines(read_file(path_));
    for (std::string line; std::getline(lines, line);) rows.push_back(nlohmann::json::parse(line));
    return rows;
  }
  std::string refusal() {
    try {
      rows();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  std::string prompts(const std::string& name, const std::string& text) {
    write_file(folder_.file(name), text);
    return folder_.file(name);
  }

  TemporaryFolder folder_;
  std::string path_ = folder_.file("self.jsonl");
  std::unique_ptr<GgufFile> source_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  TrainOptions options_;
  SelfTextOptions self_;
};

TEST_F(SelfTextTest, TrainingReadsAsManyTokensAsWereAskedFor) {
  rows();
  options_.data.files = {path_};
  const TextData data = TextData::load(options_.data, source_->metadata(), 1);
  // A text that is cut in a character or within a longer token is cut otherwise when it is read.
  EXPECT_NEAR(data.num_tokens, 300, 48 + 30);
}

TEST_F(SelfTextTest, FollowsFromTheSeed) {
  const auto first = rows(), again = rows();
  EXPECT_EQ(first, again);
  ASSERT_GT(first.size(), 3u);
  EXPECT_NE(first[0], first[1]);
  options_.seed = 2;
  EXPECT_NE(rows()[0], first[0]);
  self_.temperature = 0;
  const auto greedy = rows();
  EXPECT_EQ(greedy[0], greedy[1]);
}

// At temperature 0 a text is what generate() says after the beginning, and a colder one is
// likelier.
TEST_F(SelfTextTest, IsWhatTheModelSays) {
  self_.temperature = 0;
  self_.prompts = prompts("prompts.txt", "Once upon a time\n\nThe dog\n");
  const auto texts = rows();
  for (size_t i = 0; i < 2; ++i) {
    const std::string prompt = i == 0 ? "Once upon a time" : "The dog";
    std::vector<int32_t> ids = tokenizer_->encode(prompt, true, false);
    GenerateOptions greedy;
    greedy.max_tokens = 48 - static_cast<int64_t>(ids.size());
    const std::vector<int32_t> own = generate(*model_, *tokenizer_, ids, greedy);
    ids.insert(ids.end(), own.begin(), own.end());
    EXPECT_EQ(texts[i]["text"], tokenizer_->decode(ids));
    EXPECT_TRUE(texts[i]["text"].get<std::string>().starts_with(prompt));
  }
  EXPECT_EQ(texts[2]["text"], texts[0]["text"]);  // in turn
}

TEST_F(SelfTextTest, PromptsMayBeRowsAndTextsHaveTheirField) {
  options_.data.text_field = "story";
  self_.prompts = prompts("prompts.jsonl", "{\"story\": \"Tom\\nsaw\"}\n");
  for (const auto& row : rows())
    EXPECT_TRUE(row["story"].get<std::string>().starts_with("Tom\nsaw")) << row;
}

TEST_F(SelfTextTest, RefusesWhatIsNoPrompt) {
  self_.prompts = prompts("empty.txt", "\n\n");
  EXPECT_NE(refusal().find("empty.txt: has no prompt"), std::string::npos) << refusal();
  std::string words;
  for (int i = 0; i < 60; ++i) words += "dog ";
  self_.prompts = prompts("long.txt", "Once\n" + words);
  EXPECT_NE(refusal().find("prompt 2 has "), std::string::npos) << refusal();
  EXPECT_FALSE(std::filesystem::exists(path_));
}

// The model ends a story with the token that begins one.
TEST_F(SelfTextTest, AnswersConversations) {
  GgufMetadata metadata = source_->metadata();
  metadata.set("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}");
  self_.prompts = prompts(
      "chats.jsonl",
      R"({"messages": [{"role": "user", "content": "Once upon"}, {"role": "assistant", "content": "x"}]})"
      "\n");
  options_.data.format = "chat";
  const auto error = [&] {
    try {
      write_self_text(*model_, metadata, options_, self_, path_);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  // 48 tokens are no story.
  EXPECT_NE(error().find("answers only 0 end within data.sequence_length, 48 tokens"),
            std::string::npos)
      << error();
  metadata.set("tokenizer.ggml.eos_token_id", uint32_t{1});
  options_.data.sequence_length = 300;
  self_.tokens = 400;
  EXPECT_EQ(error(), "");
  std::istringstream lines(read_file(path_));
  int answers = 0;
  for (std::string line; std::getline(lines, line); ++answers) {
    const auto messages = nlohmann::json::parse(line)["messages"];
    ASSERT_EQ(messages.size(), 2u) << line;
    EXPECT_EQ(messages[0]["content"], "Once upon");
    EXPECT_EQ(messages[1]["role"], "assistant");
    EXPECT_TRUE(messages[1]["content"].get<std::string>().starts_with(" a time")) << line;
  }
  EXPECT_GT(answers, 0);
  self_.prompts = prompts("broken.jsonl", "{\"messages\": []}\n");
  EXPECT_NE(error().find("broken.jsonl"), std::string::npos) << error();
  EXPECT_NE(error().find("has no message that an assistant could answer"), std::string::npos);
}

TEST_F(SelfTextTest, TakesThePlaceOfItsEntry) {
  options_.data.files = {"other.txt", "self"};
  make_self_text(options_, self_, *source_, folder_.path(), false);
  EXPECT_EQ(options_.data.files, (std::vector<std::string>{"other.txt", path_}));
  const std::string written = read_file(path_);
  options_.data.files = {"self"};
  write_file(path_, "kept");
  make_self_text(options_, self_, *source_, folder_.path(), true);
  EXPECT_EQ(read_file(path_), "kept");
  options_.data.files = {"self"};
  make_self_text(options_, self_, *source_, folder_.path(), false);
  EXPECT_EQ(read_file(path_), written);
}

}  // namespace
}  // namespace nibble
