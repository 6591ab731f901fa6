#include "training/data.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "base/error.h"

namespace nibble {
namespace {

/// One token a byte, after a BOS (256); '#' ends a generation.
class ByteTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text, bool add_special, bool) const override {
    std::vector<int32_t> ids;
    if (add_special) ids.push_back(bos());
    for (char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(const std::vector<int32_t>& ids, bool) const override {
    std::string text;
    for (const int32_t id : ids)
      if (id != bos()) text += static_cast<char>(id);
    return text;
  }
  std::vector<size_t> byte_ends(const std::vector<int32_t>& ids) const override {
    std::vector<size_t> ends;
    for (const int32_t id : ids)
      ends.push_back((ends.empty() ? 0 : ends.back()) + (id == bos() ? 0 : 1));
    return ends;
  }
  int64_t vocab_size() const override { return 257; }
  int32_t bos() const override { return 256; }
  int32_t eos() const override { return -1; }
  bool add_bos() const override { return true; }
  bool is_end_of_generation(int32_t id) const override { return id == '#'; }
};

TEST(NextTokenTargets, StayInsideDocuments) {
  Batch batch;
  batch.tokens = torch::tensor({{1, 2, 3, 4}, {5, 6, 7, 8}}, torch::kInt64);
  EXPECT_TRUE(at::equal(next_token_targets(batch),
                        torch::tensor({2, 3, 4, -1, 6, 7, 8, -1}, torch::kInt64)));
  batch.document = torch::tensor({{0, 0, 1, 1}, {1, 2, 3, 3}}, torch::kInt64);
  EXPECT_TRUE(at::equal(next_token_targets(batch),
                        torch::tensor({2, -1, 4, -1, -1, -1, 8, -1}, torch::kInt64)));
  batch.trained = torch::tensor({{1, 1, 1, 0}, {1, 1, 1, 1}}, torch::kInt64).to(torch::kBool);
  EXPECT_TRUE(at::equal(next_token_targets(batch),
                        torch::tensor({2, -1, -1, -1, -1, -1, 8, -1}, torch::kInt64)));
}

class DataTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::temp_directory_path() / ("nibble_data_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    options_.sequence_length = 8;
    options_.held_out = 0;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& content) {
    const std::string path = (folder_ / name).string();
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
  TextData load(uint64_t seed = 1) const { return TextData::load(options_, ByteTokenizer(), seed); }
  std::string error() const {
    try {
      load();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  std::filesystem::path folder_;
  DataOptions options_;
};

std::vector<int64_t> values(const torch::Tensor& tensor) {
  const int64_t* data = tensor.const_data_ptr<int64_t>();
  return {data, data + tensor.numel()};
}

TEST_F(DataTest, PacksDocumentsEndToEnd) {
  options_.files = {write("a.txt", "abcdefg"), write("b.txt", "hijkl")};
  const TextData data = load();
  ASSERT_EQ(data.train.num_sequences(), 1);  // 8 + 6 tokens
  EXPECT_EQ(data.train.sequence_length(), 8);
  EXPECT_EQ(data.held_out.num_sequences(), 0);
  EXPECT_EQ(data.num_documents, 2);
  EXPECT_EQ(data.num_tokens, 14);
  EXPECT_EQ(data.num_bytes, 12);
  const std::vector<int64_t> a = {256, 'a', 'b', 'c', 'd', 'e', 'f', 'g'};
  const std::vector<int64_t> b_then_a = {256, 'h', 'i', 'j', 'k', 'l', 256, 'a'};
  const bool a_first = values(data.train.document)[7] == 0 && values(data.train.tokens)[1] == 'a';
  EXPECT_EQ(values(data.train.tokens), a_first ? a : b_then_a);
  EXPECT_EQ(values(data.train.document), a_first ? (std::vector<int64_t>(8, 0))
                                                 : (std::vector<int64_t>{1, 1, 1, 1, 1, 1, 0, 0}));
}

TEST_F(DataTest, JsonRowsAreDocuments) {
  options_.files = {
      write("a.jsonl", "{\"text\": \"abc\"}\n\n{\"text\": \"d\\u00e9f\", \"x\": 1}\n")};
  const TextData data = load();
  EXPECT_EQ(data.num_documents, 2);
  EXPECT_EQ(data.num_bytes, 3 + 4);
}

TEST_F(DataTest, AGlobTakesEachFileOnce) {
  write("b.txt", "0123456789");
  write("c.md", "0123456789");
  options_.files = {(folder_ / "*.txt").string(), (folder_ / "b*").string()};
  EXPECT_EQ(load().num_documents, 1);
}

TEST_F(DataTest, MaxBytesEndsAtACharacter) {
  options_.files = {write("a.txt", "0123456789é0123456789")};
  options_.max_bytes = 11;  // in the middle of the é
  EXPECT_EQ(load().num_bytes, 10);
  options_.max_bytes = 12;
  EXPECT_EQ(load().num_bytes, 12);
}

TEST_F(DataTest, HoldsOutTheTailOfTheOnlyDocument) {
  std::string text;
  for (int i = 0; i < 799; ++i) text += static_cast<char>('a' + i % 26);
  options_.files = {write("a.txt", text)};
  options_.held_out = 0.1;
  const TextData data = load();
  ASSERT_EQ(data.train.num_sequences(), 90);
  ASSERT_EQ(data.held_out.num_sequences(), 10);
  std::vector<int64_t> joined = values(data.train.tokens);
  for (int64_t token : values(data.held_out.tokens)) joined.push_back(token);
  const std::vector<int32_t> all = ByteTokenizer().encode(text, true, false);
  EXPECT_EQ(joined, std::vector<int64_t>(all.begin(), all.end()));
}

TEST_F(DataTest, HoldsOutWholeDocumentsWhereTheyAreSmall) {
  std::string rows;
  for (int i = 0; i < 200; ++i)
    rows += "{\"text\": \"" + std::string(7 + i % 5, static_cast<char>('a' + i % 26)) + "\"}\n";
  options_.files = {write("a.jsonl", rows)};
  options_.held_out = 0.1;
  const TextData data = load();
  const auto documents = [](const PackedData& part) {
    const std::vector<int64_t> all = values(part.document);
    return std::set<int64_t>(all.begin(), all.end());
  };
  const std::set<int64_t> train = documents(data.train);
  for (int64_t document : documents(data.held_out)) EXPECT_FALSE(train.contains(document));
  const double share = static_cast<double>(data.held_out.tokens.numel()) / data.num_tokens;
  EXPECT_GT(share, 0.09);
  EXPECT_LT(share, 0.12);
}

TEST_F(DataTest, TheSeedDecides) {
  std::string rows;
  for (int i = 0; i < 50; ++i) rows += "{\"text\": \"row number " + std::to_string(i) + "\"}\n";
  options_.files = {write("a.jsonl", rows)};
  options_.held_out = 0.1;
  EXPECT_EQ(load(1).fingerprint, load(1).fingerprint);
  EXPECT_TRUE(torch::equal(load(1).train.tokens, load(1).train.tokens));
  EXPECT_NE(load(1).fingerprint, load(2).fingerprint);
  EXPECT_FALSE(torch::equal(load(1).train.tokens, load(2).train.tokens));
}

TEST_F(DataTest, AtSelectsSequences) {
  options_.files = {write("a.txt", std::string(100, 'x') + std::string(100, 'y'))};
  const TextData data = load();
  const Batch batch = data.train.at({20, 0});
  EXPECT_TRUE(torch::equal(batch.tokens[0], data.train.tokens[20]));
  EXPECT_TRUE(torch::equal(batch.tokens[1], data.train.tokens[0]));
  EXPECT_TRUE(torch::equal(batch.document[0], data.train.document[20]));
}

TEST_F(DataTest, ErrorsNameFileAndLine) {
  options_.files = {(folder_ / "none*.txt").string()};
  EXPECT_NE(error().find("no file matches '" + options_.files[0]), std::string::npos) << error();

  options_.files = {write("a.jsonl", "{\"text\": \"abc\"}\n{\"txt\": \"abc\"}\n")};
  EXPECT_NE(error().find("a.jsonl: line 2: this row has no 'text' (did you mean 'txt'?)"),
            std::string::npos)
      << error();
  write("a.jsonl", "\n{\"text\": \n");
  EXPECT_NE(error().find("a.jsonl: line 2: this row is not JSON"), std::string::npos) << error();
  write("a.jsonl", "[1]\n");
  EXPECT_NE(error().find("line 1: wants a JSON object, found array"), std::string::npos) << error();
  write("a.jsonl", "{\"text\": 3}\n");
  EXPECT_NE(error().find("line 1: 'text' wants a string, found number"), std::string::npos)
      << error();

  options_.files = {write("a.txt", std::string("ab\0c", 4))};
  EXPECT_NE(error().find("a.txt: byte 2 is zero"), std::string::npos) << error();
}

TEST_F(DataTest, AShortTextSaysHowShort) {
  options_.files = {write("a.txt", "abc")};
  EXPECT_NE(error().find("the text has 4 tokens"), std::string::npos) << error();
  EXPECT_NE(error().find("wants 8"), std::string::npos) << error();
  write("a.txt", "0123456789");
  EXPECT_EQ(error(), "no error");
  options_.held_out = 0.02;
  EXPECT_NE(error().find("the text has 11 tokens"), std::string::npos) << error();
  EXPECT_NE(error().find("wants 16"), std::string::npos) << error();
  write("a.txt", "");
  EXPECT_NE(error().find("the text has 0 tokens"), std::string::npos) << error();
}

TEST_F(DataTest, SettingsThatCannotBeAreUsageErrors) {
  options_.files = {write("a.txt", "0123456789")};
  options_.held_out = 1.0;
  EXPECT_NE(error().find("data.held_out"), std::string::npos) << error();
  options_.held_out = 0;
  options_.sequence_length = 1;
  EXPECT_NE(error().find("data.sequence_length"), std::string::npos) << error();
}

TEST(StepSequences, EveryEpochIsAPermutation) {
  constexpr int64_t kSequences = 10, kCount = 4;
  std::vector<int64_t> all;
  for (int64_t step = 0; step < 5; ++step)
    for (int64_t sequence : step_sequences(7, step, kCount, kSequences)) all.push_back(sequence);
  const std::vector<int64_t> first(all.begin(), all.begin() + 10),
      second(all.begin() + 10, all.end());
  EXPECT_EQ(std::set<int64_t>(first.begin(), first.end()).size(), 10u);
  EXPECT_EQ(std::set<int64_t>(second.begin(), second.end()).size(), 10u);
  EXPECT_NE(first, second);
}

TEST(StepSequences, AreTheSameOnEveryMachine) {
  EXPECT_EQ(step_sequences(1, 0, 8, 8), step_sequences(1, 0, 8, 8));
  EXPECT_NE(step_sequences(1, 0, 8, 8), step_sequences(2, 0, 8, 8));
  // Fixed by the definition (SplitMix64, Fisher-Yates from the end): a change here breaks resuming
  // old runs.
  EXPECT_EQ(step_sequences(1, 1, 4, 8), (std::vector<int64_t>{5, 6, 0, 1}));
}

TEST_F(DataTest, WeightsAreSharesOfTheSequences) {
  options_.files = {write("a.txt", std::string(799, 'a')), write("b.txt", std::string(79, 'b')),
                    write("c.txt", std::string(159, 'c'))};
  options_.weights = {1, 2, 1};
  const TextData data = load();
  ASSERT_EQ(data.train.num_sequences(), 100 + 10 + 20);
  std::map<int64_t, int64_t> drawn;    // letter -> sequences
  std::map<int64_t, int64_t> of_each;  // sequence -> times
  for (int64_t step = 0; step < 50; ++step) {
    for (const int64_t row : step_sequences(1, step, 4, data.train)) {
      ++drawn[data.train.tokens[row][1].item<int64_t>()];
      ++of_each[row];
    }
    // After any number of steps.
    const int64_t all = 4 * (step + 1);
    EXPECT_NEAR(static_cast<double>(drawn['a']), static_cast<double>(all) / 4, 1);
    EXPECT_NEAR(static_cast<double>(drawn['b']), static_cast<double>(all) / 2, 1);
    EXPECT_NEAR(static_cast<double>(drawn['c']), static_cast<double>(all) / 4, 1);
  }
  // b's 10 sequences ten times each, of a's 100 half, c's 20 two or three times.
  for (const auto& [row, times] : of_each)
    EXPECT_TRUE(row < 100   ? times == 1
                : row < 110 ? times == 10
                            : times == 2 || times == 3)
        << row << ' ' << times;
}

TEST_F(DataTest, ASingleWeightChangesNothing) {
  options_.files = {write("a.txt", std::string(799, 'a'))};
  const TextData plain = load();
  options_.weights = {3};
  const TextData weighted = load();
  EXPECT_TRUE(at::equal(plain.train.tokens, weighted.train.tokens));
  for (const int64_t step : {0, 7, 40})
    EXPECT_EQ(step_sequences(1, step, 5, plain.train), step_sequences(1, step, 5, weighted.train));
}

class ChatDataTest : public DataTest {
 protected:
  /// "u:hi;a:yes#" for a user's "hi" and an answer "yes".
  const ChatTemplate chat_{
      "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ '#' if m.role == 'assistant' else "
      "';' }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}",
      "", ""};
  TextData load_chat() const { return TextData::load(options_, ByteTokenizer(), 1, &chat_); }

  void SetUp() override {
    DataTest::SetUp();
    options_.format = "chat";
    options_.sequence_length = 12;  // of "u:hi;a:yes#" with its BOS
  }
};

TEST_F(ChatDataTest, OnlyAnswersCount) {
  options_.files = {write("a.jsonl", R"({"messages": [{"role": "user", "content": "hi"},
                                          {"role": "assistant", "content": "yes"}]})")};
  // One row on two lines is none.
  EXPECT_THROW(load_chat(), Error);
  options_.files = {write("a.jsonl", R"({"prompt": "hi", "response": "yes"})"
                                     "\n"
                                     R"({"prompt": "ho", "response": "not"})")};
  const TextData data = load_chat();
  ASSERT_EQ(data.train.num_sequences(), 2);
  EXPECT_EQ(data.num_documents, 2);
  EXPECT_EQ(data.num_bytes, 22);
  for (int row = 0; row < 2; ++row) {
    std::string said;
    for (int64_t i = 0; i < 12; ++i)
      if (data.train.trained[row][i].item<bool>())
        said += static_cast<char>(data.train.tokens[row][i].item<int64_t>());
    EXPECT_TRUE(said == "yes#" || said == "not#") << said;
  }
  options_.answers_only = false;
  EXPECT_FALSE(load_chat().train.trained.defined());
  EXPECT_NE(load_chat().fingerprint, data.fingerprint);
}

TEST_F(ChatDataTest, SequencesWithoutAnAnswerAreLeftOut) {
  const std::string question(100, 'q');
  options_.files = {
      write("a.jsonl", "{\"prompt\": \"" + question + "\", \"response\": \"yes, of course\"}")};
  const TextData data = load_chat();
  // BOS, "u:", 100 of q, ";a:" are 106 tokens; then 15 to be said, of which the last does not fill
  // a sequence.
  ASSERT_EQ(data.train.num_sequences(), 2);
  EXPECT_EQ(data.train.trained.sum().item<int64_t>(), 14);
}

TEST_F(ChatDataTest, ErrorsNameTheRow) {
  options_.files = {write("a.jsonl", R"({"prompt": "hi", "response": "yes"})"
                                     "\n"
                                     R"({"prompt": "hi"})")};
  try {
    load_chat();
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("a.jsonl: line 2: 'response' is missing"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace nibble
