#include "eval/kl_base.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "tests/io/temporary_folder.h"

namespace nibble {
namespace {

class KlBaseTest : public testing::Test {
 protected:
  KlBaseTest() {
    torch::manual_seed(1);
    for (int chunk = 0; chunk < 2; ++chunk)
      logits_.push_back(torch::randn({text_.rows_per_chunk(), text_.vocab}) * 3);
  }
  void write() {
    KlBaseWriter writer(path_, text_);
    for (const torch::Tensor& logits : logits_) writer.write(logits);
    writer.finish();
  }
  std::string complaint() {
    try {
      KlBase::open(path_);
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }

  TemporaryFolder folder_;
  std::string path_ = folder_.file("base.kld");
  KlBaseText text_{8, 11, {{1, 2, 3, 4, 5, 6, 7, 8}, {8, 7, 6, 5, 4, 3, 2, 10}}};
  std::vector<torch::Tensor> logits_;
};

TEST_F(KlBaseTest, FileAndMemoryHoldTheSame) {
  write();
  KlBase memory(text_);
  for (const torch::Tensor& logits : logits_) memory.append(encode_base(logits));
  const KlBase file = KlBase::open(path_);
  EXPECT_EQ(file.text().ctx, 8);
  EXPECT_EQ(file.text().vocab, 11);
  EXPECT_EQ(file.text().chunks, text_.chunks);
  for (int64_t chunk = 0; chunk < 2; ++chunk) {
    const auto a = file.chunk(chunk), b = memory.chunk(chunk);
    EXPECT_EQ(std::vector<uint16_t>(a.begin(), a.end()), std::vector<uint16_t>(b.begin(), b.end()));
    EXPECT_EQ(a.size(), 3u * (12 + 4));
  }
}

// The layout llama-perplexity writes: 8 + 3 * 4 bytes, tokens, rows.
TEST_F(KlBaseTest, FileHasTheDocumentedLayout) {
  write();
  std::ifstream in(path_, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), {});
  EXPECT_EQ(bytes.substr(0, 8), "_logits_");
  const int32_t* numbers = reinterpret_cast<const int32_t*>(bytes.data() + 8);
  EXPECT_EQ(std::vector<int32_t>(numbers, numbers + 5), (std::vector<int32_t>{8, 11, 2, 1, 2}));
  EXPECT_EQ(bytes.size(), 20u + 2 * 8 * 4 + 2 * 3 * (12 + 4) * 2);
}

TEST_F(KlBaseTest, ModelAgainstItself) {
  KlBase memory(text_);
  memory.append(encode_base(logits_[0]));
  const auto tokens = diverge(logits_[0], memory.chunk(0), {1, 2, 3});
  ASSERT_EQ(tokens.size(), 3u);
  for (const TokenDivergence& token : tokens) {
    EXPECT_TRUE(token.same_top);
    EXPECT_NEAR(token.kld, 0, 2e-4);  // half a step of 16 / 65535 nats
    EXPECT_NEAR(token.nll, token.nll_base, 2e-4);
  }
}

TEST_F(KlBaseTest, NothingAppearsBeforeTheLastChunk) {
  {
    KlBaseWriter writer(path_, text_);
    writer.write(logits_[0]);
    EXPECT_THROW(writer.finish(), Error);
  }
  EXPECT_EQ(folder_.num_files(), 0u);
}

TEST_F(KlBaseTest, BrokenFilesAreRefused) {
  write();
  std::ifstream in(path_, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  const auto with = [&](size_t offset, int32_t number) {
    std::string bytes = whole;
    std::memcpy(bytes.data() + offset, &number, 4);
    return bytes;
  };
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "_logits_"},
      {"GGUF" + whole.substr(4), "_logits_"},
      {whole.substr(0, whole.size() - 1), "bytes"},
      {whole + "x", "bytes"},
      {with(8, 0), "context 0"},
      {with(12, -1), "vocabulary -1"},
      {with(16, 1 << 30), "bytes"},
      {with(20, 11), "token 11"},
  };
  for (const auto& [bytes, wanted] : cases) {
    std::ofstream(path_, std::ios::binary) << bytes;
    const std::string text = complaint();
    EXPECT_NE(text.find(wanted), std::string::npos) << text;
    EXPECT_EQ(text.find(path_), 0u) << text;
  }
}

TEST(Summarize, FiguresByHand) {
  std::vector<TokenDivergence> tokens;
  for (int i = 0; i < 1000; ++i) {
    TokenDivergence token;
    token.nll = 2.0f + (i % 2);
    token.nll_base = 2.0f;
    token.kld = static_cast<float>(i);
    token.dp = i % 2 ? 0.3f : -0.1f;
    token.same_top = i % 4 != 0;
    tokens.push_back(token);
  }
  const DivergenceFigures figures = summarize(tokens);
  EXPECT_NEAR(figures.ppl.value, std::exp(2.5), 1e-9);
  EXPECT_NEAR(figures.ppl.err, std::exp(2.5) * 0.5 / std::sqrt(999), 1e-9);
  EXPECT_NEAR(figures.ppl_base.value, std::exp(2.0), 1e-9);
  EXPECT_NEAR(figures.ln_ppl_ratio.value, 0.5, 1e-12);
  EXPECT_NEAR(figures.ln_ppl_ratio.err, 0.5 / std::sqrt(999), 1e-12);
  EXPECT_NEAR(figures.mean_kld.value, 499.5, 1e-9);
  EXPECT_NEAR(figures.mean_kld.err, std::sqrt((1e6 - 1) / 12 / 999), 1e-6);
  EXPECT_NEAR(figures.median_kld, 499.5, 1e-9);
  EXPECT_NEAR(figures.p999_kld, 0.999 * 999, 1e-3);  // float32 interpolation of numbers near 1000
  EXPECT_EQ(figures.max_kld, 999);
  const double mean_square = 0.05;  // (0.09 + 0.01) / 2, with a standard deviation of 0.04
  EXPECT_NEAR(figures.rms_dp.value, std::sqrt(mean_square), 1e-7);
  EXPECT_NEAR(figures.rms_dp.err, 0.5 / std::sqrt(mean_square) * 0.04 / std::sqrt(999), 1e-7);
  EXPECT_NEAR(figures.same_top.value, 0.75, 1e-12);
  EXPECT_NEAR(figures.same_top.err, std::sqrt(0.75 * 0.25 / 999), 1e-12);
}

}  // namespace
}  // namespace nibble
