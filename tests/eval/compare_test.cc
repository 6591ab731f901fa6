// Perplexity and comparison on a llama in miniature, with a byte tokenizer.
#include "eval/compare.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/atomic_file.h"
#include "tests/io/temporary_folder.h"
#include "tests/model/tiny_llama.h"
#include "tests/model/tokenizer_metadata.h"

namespace nibble {
namespace {

constexpr PerplexityOptions kOptions{16, -1};

TinyLlama text_llama(uint32_t seed = 1) {
  TinyLlama tiny;
  tiny.vocab = 259;
  tiny.seed = seed;
  tiny.extra = spm_metadata({});
  tiny.extra.set("tokenizer.ggml.add_bos_token", true);
  tiny.extra.set("tokenizer.ggml.bos_token_id", uint32_t{1});
  return tiny;
}

class EvalTest : public testing::Test {
 protected:
  EvalTest() {
    std::string text;
    for (int i = 0; i < 100; ++i) text += static_cast<char>('a' + (i * i) % 23);
    write_file(text_, text);
  }
  std::string write(const std::string& name, const TinyLlama& tiny) {
    tiny.write(folder_.file(name));
    return folder_.file(name);
  }
  std::string complaint(const TinyLlama& model) {
    try {
      compare({"base", write("base.gguf", text_llama())}, {{"other", write("other.gguf", model)}},
              text_, kOptions);
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }
  TemporaryFolder folder_;
  std::string text_ = folder_.file("text.txt");
};

TEST_F(EvalTest, ChunksAreCutAndBeginWithBos) {
  const GgufFile file = GgufFile::open(write("a.gguf", text_llama()));
  const auto tokenizer = Tokenizer::from_metadata(file.metadata());
  const std::string text = read_file(text_);
  const auto all = tokenizer->encode(text, true, false);
  const auto cut = cut_chunks(*tokenizer, text, kOptions);
  ASSERT_EQ(cut.size(), all.size() / 16);
  for (size_t i = 0; i < cut.size(); ++i)
    EXPECT_EQ(cut[i], std::vector<int32_t>(all.begin() + 16 * i, all.begin() + 16 * (i + 1)));
  const auto ready = perplexity_chunks(*tokenizer, text, {16, 3});
  ASSERT_EQ(ready.size(), 3u);
  EXPECT_NE(cut[1][0], 1);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(ready[i][0], 1);
    EXPECT_TRUE(std::equal(ready[i].begin() + 1, ready[i].end(), cut[i].begin() + 1));
  }
}

TEST_F(EvalTest, TextMustHoldTwoChunks) {
  const GgufFile file = GgufFile::open(write("a.gguf", text_llama()));
  const auto tokenizer = Tokenizer::from_metadata(file.metadata());
  const int64_t tokens = tokenizer->encode(read_file(text_), true, false).size();
  EXPECT_NO_THROW(cut_chunks(*tokenizer, read_file(text_), {tokens / 2, -1}));
  EXPECT_THROW(cut_chunks(*tokenizer, read_file(text_), {tokens / 2 + 1, -1}), Error);
  EXPECT_THROW(cut_chunks(*tokenizer, read_file(text_), {16, 0}), Error);
}

TEST_F(EvalTest, PerplexityScoresTheSecondHalf) {
  const GgufFile file = GgufFile::open(write("a.gguf", text_llama()));
  const auto model = load_model(file);
  const auto chunks =
      perplexity_chunks(*Tokenizer::from_metadata(file.metadata()), read_file(text_), kOptions);
  int64_t visited = 0;
  const PerplexityResult found = perplexity(
      *model, chunks,
      [&](int64_t chunk, const torch::Tensor& logits, const std::vector<int32_t>& next) {
        EXPECT_EQ(chunk, visited++);
        EXPECT_EQ(logits.sizes(), (std::vector<int64_t>{7, 259}));
        EXPECT_EQ(next, std::vector<int32_t>(chunks[chunk].begin() + 9, chunks[chunk].end()));
      });
  EXPECT_EQ(visited, static_cast<int64_t>(chunks.size()));
  double sum = 0, squares = 0;
  for (const auto& chunk : chunks) {
    const torch::Tensor tokens =
        torch::tensor(std::vector<int64_t>(chunk.begin(), chunk.end())).unsqueeze(0);
    const torch::Tensor logs =
        at::log_softmax(model->logits({tokens, {}})[0].to(torch::kFloat64), -1);
    for (int64_t row = 8; row <= 14; ++row) {
      const double loss = -logs[row][chunk[row + 1]].item<double>();
      sum += loss;
      squares += loss * loss;
    }
  }
  const double count = 7.0 * chunks.size(), mean = sum / count;
  EXPECT_EQ(found.tokens, static_cast<int64_t>(count));
  EXPECT_NEAR(found.nll, mean, 1e-5);  // float32 forward
  EXPECT_NEAR(found.ppl, std::exp(mean), 1e-5 * std::exp(mean));
  EXPECT_NEAR(found.nll_err, std::sqrt((squares / count - mean * mean) / (count - 1)), 1e-5);
  EXPECT_NEAR(found.ppl_err, found.ppl * found.nll_err, 1e-9);
}

TEST_F(EvalTest, ModelAgainstItselfAndAnother) {
  const std::string base = write("base.gguf", text_llama()),
                    other = write("other.gguf", text_llama(2));
  const Comparison found =
      compare({"base", base}, {{"same", base}, {"other", other}}, text_, kOptions);
  ASSERT_EQ(found.models.size(), 2u);
  const ModelFigures &same = found.models[0], &far = found.models[1];
  // The base goes through 16 bits: a step is 16 / 65535 nats at most.
  EXPECT_NEAR(same.mean_kld, 0, 2e-4);
  EXPECT_EQ(same.same_top, 1.0);
  EXPECT_NEAR(same.ppl, found.base_ppl, 1e-5 * found.base_ppl);
  EXPECT_NEAR(found.base_ppl_16bit, found.base_ppl, 2e-4 * found.base_ppl);
  EXPECT_GT(far.mean_kld, 0.1);
  EXPECT_LT(far.same_top, 1.0);
  EXPECT_EQ(same.bytes, static_cast<int64_t>(std::filesystem::file_size(base)));
  EXPECT_EQ(same.bpw, 32.0);
  EXPECT_EQ(far.kld_per_token.size(), static_cast<size_t>(found.tokens));
  ASSERT_EQ(found.differences.size(), 1u);
  EXPECT_EQ(found.differences[0].a, "other");
  EXPECT_EQ(found.differences[0].b, "same");
  EXPECT_NEAR(found.differences[0].mean_kld, far.mean_kld - same.mean_kld, 1e-6);
  EXPECT_NEAR(found.differences[0].ln_ppl_ratio, std::log(far.ppl / same.ppl), 1e-6);
  ASSERT_EQ(found.warnings.size(), 1u);
  EXPECT_NE(found.warnings[0].find("'other'"), std::string::npos);
}

TEST_F(EvalTest, OtherShapesAndVocabulariesAreRefused) {
  EXPECT_EQ(complaint(text_llama(5)), "");
  TinyLlama model = text_llama();
  model.layers = 1;
  EXPECT_NE(complaint(model).find("number of layers is 1, that of the base 'base' is 2"),
            std::string::npos);
  model = text_llama();
  model.width = 64;
  EXPECT_NE(complaint(model).find("width is 64"), std::string::npos);
  model = text_llama();
  model.vocab = 260;
  EXPECT_NE(complaint(model).find("vocabulary size is 260"), std::string::npos) << complaint(model);
  model = text_llama();
  const auto tokens = std::get<GgufArray>(*model.extra.find("tokenizer.ggml.tokens"));
  auto names = std::get<std::vector<std::string>>(tokens.values);
  std::swap(names[3], names[4]);
  model.extra.set("tokenizer.ggml.tokens", strings(names));
  EXPECT_NE(complaint(model).find("tokenizer.ggml.tokens differ"), std::string::npos);
}

TEST_F(EvalTest, JsonAndTableNameEveryModel) {
  const std::string base = write("base.gguf", text_llama()),
                    other = write("other.gguf", text_llama(2));
  const Comparison found =
      compare({"base", base}, {{"one", other}, {"two", base}}, text_, kOptions);
  const auto json = nlohmann::json::parse(comparison_json(found));
  ASSERT_EQ(json["models"].size(), 2u);
  for (const char* key : {"ppl", "ppl_err", "ln_ppl_ratio", "ln_ppl_ratio_err", "mean_kld",
                          "mean_kld_err", "p999_kld", "rms_dp", "rms_dp_err", "same_top",
                          "same_top_err", "bytes", "bpw", "tokens_per_second", "seconds"})
    EXPECT_TRUE(json["models"][0][key].is_number()) << key;
  EXPECT_EQ(json["models"][0]["name"], "one");
  EXPECT_EQ(json["base_ppl"], found.base_ppl);
  EXPECT_GT(json["peak_bytes"], 1 << 20);
  EXPECT_EQ(json["differences"].size(), 1u);
  const std::string table = comparison_table(found);
  EXPECT_NE(table.find("\none "), std::string::npos) << table;
  EXPECT_NE(table.find("two - one: mean KLD -"), std::string::npos) << table;
  EXPECT_NE(comparison_table(found, "one").find("two - one: "), std::string::npos);
  EXPECT_EQ(comparison_table(found, "three").find("two - one: "), std::string::npos);
}

TEST_F(EvalTest, OfManyModelsTheTableHasTheDifferencesFromTheClosest) {
  const std::string base = write("base.gguf", text_llama()),
                    other = write("other.gguf", text_llama(2));
  const Comparison found = compare(
      {"base", base}, {{"a", other}, {"b", other}, {"c", base}, {"d", other}}, text_, kOptions);
  EXPECT_EQ(found.differences.size(), 6u);
  const std::string table = comparison_table(found);
  for (const char* line : {"\nc - a: ", "\nc - b: ", "\nd - c: "})
    EXPECT_NE(table.find(line), std::string::npos) << table;
  for (const char* line : {"\nb - a: ", "\nd - a: ", "\nd - b: "})
    EXPECT_EQ(table.find(line), std::string::npos) << table;
}

}  // namespace
}  // namespace nibble
