#include "eval/imatrix.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "base/error.h"
#include "tests/io/temporary_folder.h"
#include "tests/model/tiny_llama.h"

namespace nibble {
namespace {

// Sums of some hundred float32 squares, of activations whose own rounding is of the same order.
constexpr double kTolerance = 1e-5;

using Chunks = std::vector<std::vector<int32_t>>;

Chunks some_chunks(int64_t count, int64_t length) {
  Chunks chunks(count, std::vector<int32_t>(length));
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < length; ++j)
      chunks[i][j] = static_cast<int32_t>((7 * i + j * j + 3 * j) % 50);
  return chunks;
}

class CollectImatrix : public testing::Test {
 protected:
  CollectImatrix() {
    TinyLlama tiny;
    tiny.biases = true;
    tiny.write(folder_.file("tiny.gguf"));
    model_ = load_model(GgufFile::open(folder_.file("tiny.gguf")));
  }
  torch::Tensor weight(const std::string& name) { return model_->find_weight(name)->value; }

  TemporaryFolder folder_;
  std::unique_ptr<Model> model_;
};

TEST_F(CollectImatrix, HasTheMatricesOfTheBlocks) {
  const Imatrix imatrix = collect_imatrix(*model_, some_chunks(3, 16));
  std::set<std::string> found, wanted;
  for (const auto& [name, entry] : imatrix.entries) {
    found.insert(name);
    EXPECT_EQ(entry.counts, std::vector<int64_t>{3 * 16});
    EXPECT_EQ(static_cast<int64_t>(entry.sums.size()), weight(name).size(1)) << name;
  }
  for (const Weight* weight : model_->weights())
    if (weight->name.starts_with("blk.") && weight->value.dim() == 2) wanted.insert(weight->name);
  EXPECT_EQ(wanted.size(), 14u);
  EXPECT_EQ(found, wanted);
  EXPECT_EQ(imatrix.chunk_count, 3);
  EXPECT_EQ(imatrix.chunk_size, 16);
}

TEST_F(CollectImatrix, SumsAreThoseOfTheNormedEmbeddings) {
  const Chunks chunks = some_chunks(3, 16);
  const Imatrix imatrix = collect_imatrix(*model_, chunks);
  const torch::Tensor scale = weight("blk.0.attn_norm.weight").to(torch::kFloat64);
  torch::Tensor sums = torch::zeros({32}, torch::kFloat64);
  for (const std::vector<int32_t>& chunk : chunks)
    for (const int32_t token : chunk) {
      const torch::Tensor x = weight("token_embd.weight")[token].to(torch::kFloat64);
      sums += (x / (x.square().mean() + 1e-5).sqrt() * scale).square();
    }
  const std::vector<float>& query = imatrix.entries.at("blk.0.attn_q.weight").sums;
  for (int64_t i = 0; i < 32; ++i)
    EXPECT_NEAR(query[i], sums[i].item<double>(), kTolerance * sums[i].item<double>());
  // What enters together has the same sums, what enters elsewhere others.
  const auto sums_of = [&](const std::string& name) { return imatrix.entries.at(name).sums; };
  EXPECT_EQ(sums_of("blk.0.attn_k.weight"), query);
  EXPECT_EQ(sums_of("blk.0.attn_v.weight"), query);
  EXPECT_NE(sums_of("blk.1.attn_q.weight"), query);
  EXPECT_NE(sums_of("blk.0.attn_output.weight"), query);
  EXPECT_NE(sums_of("blk.0.ffn_gate.weight"), query);
  EXPECT_EQ(sums_of("blk.0.ffn_up.weight"), sums_of("blk.0.ffn_gate.weight"));
}

TEST_F(CollectImatrix, ChunksAddUp) {
  // 200 chunks of 16 tokens go through the model in two groups.
  const Chunks chunks = some_chunks(200, 16);
  const Imatrix all = collect_imatrix(*model_, chunks);
  const Imatrix front = collect_imatrix(*model_, {chunks.begin(), chunks.begin() + 50});
  const Imatrix back = collect_imatrix(*model_, {chunks.begin() + 50, chunks.end()});
  for (const auto& [name, entry] : all.entries)
    for (size_t i = 0; i < entry.sums.size(); ++i)
      EXPECT_NEAR(entry.sums[i], front.entries.at(name).sums[i] + back.entries.at(name).sums[i],
                  kTolerance * entry.sums[i])
          << name;
}

TEST_F(CollectImatrix, ActivationsThatAreNotFiniteAreNamed) {
  weight("blk.1.ffn_norm.weight")[3] = NAN;
  try {
    collect_imatrix(*model_, some_chunks(2, 16));
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    // The first by name that the norm leads to.
    EXPECT_STREQ(error.what(),
                 "tensor 'blk.1.ffn_down.weight': the activations that enter it are not finite");
  }
  weight("blk.1.ffn_norm.weight")[3] = 1.0f;
  EXPECT_EQ(collect_imatrix(*model_, some_chunks(2, 16)).entries.size(), 14u);
}

TEST_F(CollectImatrix, NoChunksAreRefused) { EXPECT_THROW(collect_imatrix(*model_, {}), Error); }

}  // namespace
}  // namespace nibble
