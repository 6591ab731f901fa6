#include "model/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/error.h"

namespace nibble {
namespace {

constexpr int64_t kVocabulary = 8;

struct CountingCache final : KvCache {
  int64_t length() const override { return tokens; }
  int64_t tokens = 0;
};

/// After token t it likes t + 1 best, and t + 2 half as much. Its states are one-hot, its output is
/// the identity.
class CountingModel final : public Model {
 public:
  const ModelShape& shape() const override { return shape_; }
  std::vector<Weight*> weights() override { return {}; }
  torch::Tensor hidden(const Batch&) override { fail("generation reads token by token"); }
  torch::Tensor embed(const Batch& batch) override { return hidden(batch); }
  torch::Tensor blocks(const torch::Tensor&, const Batch& batch) override { return hidden(batch); }
  torch::Tensor finish(const torch::Tensor& x) const override { return x; }
  const torch::Tensor& output_weight() const override { return output_; }
  std::unique_ptr<KvCache> new_cache() override { return std::make_unique<CountingCache>(); }
  torch::Tensor hidden_next(const std::vector<NextTokens>& texts) override {
    std::vector<torch::Tensor> parts;
    for (const NextTokens& text : texts) {
      dynamic_cast<CountingCache&>(*text.cache).tokens += text.tokens.size(0);
      parts.push_back(text.tokens);
    }
    const torch::Tensor tokens = torch::cat(parts);
    read_.push_back(tokens.size(0));
    const torch::Tensor next = (tokens + 1) % kVocabulary, after = (tokens + 2) % kVocabulary;
    return 2 * torch::one_hot(next, kVocabulary).to(torch::kFloat32) +
           torch::one_hot(after, kVocabulary).to(torch::kFloat32);
  }
  void set_compute_dtype(torch::Dtype) override {}
  torch::Dtype compute_dtype() const override { return torch::kFloat32; }
  std::unique_ptr<Model> copy() override { return nullptr; }
  const std::vector<int64_t>& read() const { return read_; }

 private:
  ModelShape shape_{"counting", 1, kVocabulary, kVocabulary, 64};
  torch::Tensor output_ = torch::eye(kVocabulary);
  std::vector<int64_t> read_;
};

/// Only the end of a generation matters here.
class EndingTokenizer final : public Tokenizer {
 public:
  explicit EndingTokenizer(int32_t end) : end_(end) {}
  std::vector<int32_t> encode(std::string_view, bool, bool) const override { return {}; }
  std::string decode(const std::vector<int32_t>&, bool) const override { return ""; }
  std::vector<size_t> byte_ends(const std::vector<int32_t>&) const override { return {}; }
  int64_t vocab_size() const override { return kVocabulary; }
  int32_t bos() const override { return -1; }
  int32_t eos() const override { return end_; }
  bool add_bos() const override { return false; }
  bool is_end_of_generation(int32_t id) const override { return id == end_; }

 private:
  int32_t end_;
};

using Ids = std::vector<int32_t>;

TEST(Generate, TakesTheLikeliestTokenAndReadsThePromptOnce) {
  CountingModel model;
  Ids seen;
  const Ids ids = generate(model, EndingTokenizer(-1), {5, 1}, {.max_tokens = 4},
                           [&](int32_t id) { seen.push_back(id); });
  EXPECT_EQ(ids, (Ids{2, 3, 4, 5}));
  EXPECT_EQ(seen, ids);
  EXPECT_EQ(model.read(), (std::vector<int64_t>{2, 1, 1, 1}));
}

TEST(Generate, StopsAtTheEndToken) {
  CountingModel model;
  EXPECT_EQ(generate(model, EndingTokenizer(4), {1}, {}), (Ids{2, 3}));
}

TEST(Generate, DrawsByTheSeed) {
  const auto draw = [](uint64_t seed) {
    CountingModel model;
    return generate(model, EndingTokenizer(-1), {1},
                    {.max_tokens = 40, .temperature = 1.0, .seed = seed});
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

// At temperature t the odds of t + 1 against t + 2 are exp(1 / t).
TEST(Generate, DrawsByTheProbabilities) {
  CountingModel model;
  const Ids ids = generate(model, EndingTokenizer(-1), {0},
                           {.max_tokens = 4000, .temperature = 0.5, .seed = 1});
  std::map<int32_t, int64_t> steps;
  for (size_t i = 1; i < ids.size(); ++i)
    ++steps[static_cast<int32_t>((ids[i] - ids[i - 1] + kVocabulary) % kVocabulary)];
  const double ratio = static_cast<double>(steps[1]) / static_cast<double>(steps[2]);
  // e^2 = 7.39; the standard error of the ratio over 4,000 draws is 0.4, the seed is fixed.
  EXPECT_NEAR(ratio, 7.39, 1.2);
}

TEST(Generate, RefusesAnEmptyPromptAndANegativeTemperature) {
  CountingModel model;
  EXPECT_THROW(generate(model, EndingTokenizer(-1), {}, {}), Error);
  EXPECT_THROW(generate(model, EndingTokenizer(-1), {1}, {.temperature = -1.0}), Error);
}

// Texts of 1 to 5 tokens, three at a time: taken in their order, whichever ends first, and the same
// as one by one.
TEST(Generate, ManyAreWhatEachIsAlone) {
  const auto task = [](int64_t number) {
    return GenerateTask{{static_cast<int32_t>(number % 7), 1},
                        {.max_tokens = 1 + (number * 3) % 5,
                         .temperature = 1.0,
                         .seed = static_cast<uint64_t>(number)}};
  };
  const EndingTokenizer tokenizer(5);
  std::vector<Ids> alone, together;
  for (int64_t number = 0; number < 20; ++number) {
    CountingModel model;
    alone.push_back(generate(model, tokenizer, task(number).prompt, task(number).options));
  }
  CountingModel model;
  generate_many(model, tokenizer, 3, task, [&](const Ids& ids) {
    together.push_back(ids);
    return together.size() < 20;
  });
  EXPECT_EQ(together, alone);
  EXPECT_LE(*std::max_element(model.read().begin(), model.read().end()), 6);  // three prompts
  EXPECT_LT(model.read().size(), 40u);  // alone they are read in 60 steps
}

}  // namespace
}  // namespace nibble
