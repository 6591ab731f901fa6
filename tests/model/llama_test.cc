#include "model/llama.h"

#include <gtest/gtest.h>

#include <array>
#include <map>

#include "base/error.h"
#include "tests/model/llama_test.h"
#include "tests/model/plain_llama.h"

namespace nibble {
namespace {

// Two layers of float32 sums, each of at most 50 terms of unit size, against double or another
// order.
constexpr double kTolerance = 2e-5;

/// A gated delta net's norm divides by what is next to 0 where a query stands at right angles to
/// all that was learned: in four such layers errors grew to 4e-4.
double tolerance_of(const TinyLlama& tiny) { return tiny.is_hybrid() ? 1e-3 : kTolerance; }

torch::Tensor some_tokens(int64_t rows, int64_t length) {
  torch::manual_seed(11);
  return torch::randint(50, {rows, length}, torch::kInt64);
}

double largest_difference(const torch::Tensor& a, const torch::Tensor& b) {
  return (a.to(torch::kFloat64) - b.to(torch::kFloat64)).abs().max().item<double>();
}

class Variants : public LlamaTest,
                 public testing::WithParamInterface<std::tuple<bool, bool, int, const char*>> {};

TEST_P(Variants, ForwardAndGradientsFollowTheFormulas) {
  TinyLlama tiny;
  tiny.tied = std::get<0>(GetParam());
  tiny.biases = std::get<1>(GetParam());
  tiny.kv_heads = std::get<2>(GetParam());
  tiny.take_architecture(std::get<3>(GetParam()));
  const auto model = load(tiny);
  PlainLlama plain(*model, tiny);
  for (Weight* weight : model->weights()) weight->value.requires_grad_(true);
  const torch::Tensor tokens = some_tokens(1, 20);
  const torch::Tensor logits = model->logits({tokens, {}})[0], wanted = plain.logits(tokens[0]);
  EXPECT_LT(largest_difference(logits.detach(), wanted.detach()), tolerance_of(tiny));
  const torch::Tensor grad = torch::randn_like(logits);
  logits.backward(grad);
  wanted.backward(grad.to(torch::kFloat64));
  for (const Weight* weight : model->weights()) {
    const torch::Tensor expected = plain.weight(weight->name).grad();
    EXPECT_LT(
        largest_difference(weight->value.grad(), expected) / expected.abs().max().item<double>(),
        tolerance_of(tiny))
        << weight->name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Llama, Variants,
    testing::Values(
        std::make_tuple(false, false, 2, "llama"), std::make_tuple(true, false, 2, "llama"),
        std::make_tuple(false, true, 1, "llama"), std::make_tuple(true, true, 4, "llama"),
        std::make_tuple(false, true, 2, "qwen2"), std::make_tuple(true, false, 2, "qwen3"),
        std::make_tuple(false, true, 1, "qwen3"), std::make_tuple(true, false, 2, "gemma2"),
        std::make_tuple(true, false, 1, "gemma2"), std::make_tuple(true, false, 2, "gemma3"),
        std::make_tuple(false, false, 1, "gemma3"), std::make_tuple(false, true, 2, "mixtral"),
        std::make_tuple(true, false, 2, "qwen3moe"),
        // Without biases: that of keys that are not turned has no gradient.
        std::make_tuple(true, false, 2, "smollm3"), std::make_tuple(false, false, 2, "phi3"),
        std::make_tuple(true, true, 2, "granite"), std::make_tuple(true, false, 2, "qwen35"),
        std::make_tuple(false, false, 1, "qwen35"), std::make_tuple(true, false, 2, "qwen35moe"),
        std::make_tuple(false, false, 2, "qwen3next"), std::make_tuple(false, true, 2, "gpt-oss"),
        std::make_tuple(true, true, 1, "gpt-oss")));

TEST_F(LlamaTest, WeightsComeInFileOrder) {
  TinyLlama tiny;
  const auto model = load(tiny);
  const auto tensors = tiny.tensors();
  const auto weights = model->weights();
  ASSERT_EQ(weights.size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) EXPECT_EQ(weights[i]->name, tensors[i].name);
  EXPECT_EQ(model->find_weight("output.weight")->value.size(0), tiny.vocab);
  EXPECT_EQ(model->find_weight("nothing"), nullptr);
  EXPECT_EQ(model->shape().vocab_size, tiny.vocab);
}

TEST_F(LlamaTest, AWindowCountsWithinADocument) {
  TinyLlama tiny;
  tiny.take_architecture("gemma3");
  const auto model = load(tiny);
  const torch::Tensor tokens = some_tokens(1, 40);
  torch::Tensor document = torch::zeros({1, 40}, torch::kInt64);
  document[0].slice(0, 9).fill_(1);
  const torch::NoGradGuard no_grad;
  const torch::Tensor packed = model->logits({tokens, document})[0];
  const torch::Tensor alone = model->logits({tokens.slice(1, 9), {}})[0];
  EXPECT_LT(largest_difference(packed.slice(0, 9), alone), 4 * kTolerance);
}

TEST_F(LlamaTest, RowsOfABatchAreSeparateRuns) {
  const auto model = load({});
  const torch::Tensor tokens = some_tokens(3, 16);
  const torch::NoGradGuard no_grad;
  const torch::Tensor together = model->logits({tokens, {}});
  for (int64_t row = 0; row < 3; ++row)
    EXPECT_LT(
        largest_difference(together[row], model->logits({tokens.slice(0, row, row + 1), {}})[0]),
        kTolerance);
}

TEST_F(LlamaTest, DocumentNumbersNeedTheTokensShape) {
  const auto model = load({});
  EXPECT_THROW(model->hidden({some_tokens(1, 8), torch::zeros({1, 7}, torch::kInt64)}), Error);
}

class Architectures : public LlamaTest, public testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(Llama, Architectures,
                         testing::Values("llama", "mixtral", "qwen2", "qwen3", "qwen3moe", "gemma2",
                                         "gemma3", "smollm3", "phi3", "qwen35", "qwen35moe",
                                         "qwen3next", "gpt-oss"));

TEST_P(Architectures, DocumentsOfARowAreSeparateRuns) {
  TinyLlama tiny;
  tiny.take_architecture(GetParam());
  const auto model = load(tiny);
  const torch::Tensor tokens = some_tokens(2, 24);
  torch::Tensor document = torch::zeros({2, 24}, torch::kInt64);
  document[0].slice(0, 7, 20).fill_(1);
  document[0].slice(0, 20).fill_(2);
  document[1].slice(0, 1).fill_(5);
  const torch::NoGradGuard no_grad;
  const torch::Tensor packed = model->logits({tokens, document});
  const std::vector<std::array<int64_t, 3>> parts = {
      {0, 0, 7}, {0, 7, 20}, {0, 20, 24}, {1, 0, 1}, {1, 1, 24}};
  for (const auto& [row, begin, end] : parts) {
    const torch::Tensor alone =
        model->logits({tokens[row].slice(0, begin, end).unsqueeze(0), {}})[0];
    EXPECT_LT(largest_difference(packed[row].slice(0, begin, end), alone), tolerance_of(tiny));
  }
  EXPECT_GT(largest_difference(packed, model->logits({tokens, {}})), 1000 * kTolerance);
}

// Convolutions and the embedding table, with which float32 is computed, stay as they are.
TEST_P(Architectures, MatricesThatAreKeptCastGiveTheSameBits) {
  TinyLlama tiny;
  tiny.take_architecture(GetParam());
  const auto model = load(tiny);
  model->set_compute_dtype(torch::kBFloat16);
  const torch::Tensor tokens = some_tokens(2, 24);
  const torch::NoGradGuard no_grad;
  const torch::Tensor before = model->logits({tokens, {}});
  model->keep_matrices_cast();
  const char* up = tiny.experts > 0 ? "blk.0.ffn_up_exps.weight" : "blk.0.ffn_up.weight";
  EXPECT_EQ(model->find_weight(up)->value.scalar_type(), torch::kBFloat16);
  EXPECT_TRUE(torch::equal(model->logits({tokens, {}}), before));
}

TEST_P(Architectures, CacheContinuesWhereItStopped) {
  TinyLlama tiny;
  tiny.take_architecture(GetParam());
  const auto model = load(tiny);
  const torch::Tensor tokens = some_tokens(1, 150)[0];  // beyond the cache's first 64 rows, twice
  const torch::Tensor whole = model->hidden({tokens.unsqueeze(0), {}})[0];
  const auto cache = model->new_cache();
  int64_t begin = 0;
  for (const int64_t step : {40, 1, 1, 30, 77, 1}) {
    EXPECT_EQ(cache->length(), begin);
    const torch::Tensor states = model->hidden_next(tokens.narrow(0, begin, step), *cache);
    EXPECT_LT(largest_difference(states, whole.narrow(0, begin, step)), tolerance_of(tiny))
        << begin;
    begin += step;
  }
}

// Texts of different lengths that are read together, some of them token by token.
TEST_P(Architectures, CachesOfSeveralTextsAreApart) {
  TinyLlama tiny;
  tiny.take_architecture(GetParam());
  const auto model = load(tiny);
  const torch::Tensor tokens = some_tokens(3, 70);
  const torch::Tensor whole = model->hidden({tokens, {}});
  std::vector<std::unique_ptr<KvCache>> caches;
  for (int text = 0; text < 3; ++text) caches.push_back(model->new_cache());
  const auto read = [&](const std::vector<std::pair<int64_t, int64_t>>& counts) {
    std::vector<NextTokens> next;
    std::vector<torch::Tensor> wanted;
    for (const auto& [text, count] : counts) {
      const int64_t begin = caches[text]->length();
      next.push_back({tokens[text].narrow(0, begin, count), caches[text].get()});
      wanted.push_back(whole[text].narrow(0, begin, count));
    }
    EXPECT_LT(largest_difference(model->hidden_next(next), torch::cat(wanted)), tolerance_of(tiny));
  };
  read({{0, 40}, {2, 3}});
  read({{2, 1}, {0, 1}, {1, 66}});
  read({{0, 29}, {1, 1}, {2, 1}});
}

class Mixtures : public LlamaTest,
                 public testing::WithParamInterface<std::tuple<bool, const char*>> {};
INSTANTIATE_TEST_SUITE_P(Llama, Mixtures,
                         testing::Combine(testing::Bool(), testing::Values("qwen3moe", "gpt-oss")));

TEST_P(Mixtures, LoadBalanceIsTransformersLossAndItsGradient) {
  constexpr double kWeight = 0.3;
  TinyLlama tiny;
  tiny.take_architecture(std::get<1>(GetParam()));
  const auto model = load(tiny);
  PlainLlama plain(*model, tiny);
  for (Weight* weight : model->weights()) weight->value.requires_grad_(true);
  model->set_activation_checkpointing(std::get<0>(GetParam()));
  model->set_load_balance(kWeight);
  const torch::Tensor tokens = some_tokens(1, 20);
  const torch::Tensor logits = model->logits({tokens, {}})[0], wanted = plain.logits(tokens[0]);
  // load_balancing_loss_func: the layers' positions one after the other.
  const torch::Tensor all = at::cat(plain.routed);
  const torch::Tensor chosen = std::get<1>(at::topk(all, tiny.experts_used, -1));
  const torch::Tensor shares = at::one_hot(chosen, tiny.experts).to(torch::kFloat64).mean(0).sum(0);
  const torch::Tensor loss = (shares * all.mean(0)).sum() * tiny.experts;
  EXPECT_NEAR(model->load_balance(), loss.item<double>(), kTolerance);
  EXPECT_GT(model->load_balance(), 1.01 * tiny.experts_used);  // not all alike
  const torch::Tensor grad = torch::randn_like(logits);
  logits.backward(grad);
  ((wanted * grad.to(torch::kFloat64)).sum() + kWeight * loss).backward();
  for (const Weight* weight : model->weights()) {
    const torch::Tensor expected = plain.weight(weight->name).grad();
    EXPECT_LT(
        largest_difference(weight->value.grad(), expected) / expected.abs().max().item<double>(),
        kTolerance)
        << weight->name;
  }
}

TEST_F(LlamaTest, ExpertsThatNoPositionReachesGetNoGradient) {
  TinyLlama tiny;
  tiny.take_architecture("mixtral");
  tiny.experts = 40;
  const auto model = load(tiny);
  for (Weight* weight : model->weights()) weight->value.requires_grad_(true);
  std::map<std::string, std::vector<int64_t>> rows;
  const MatmulObservation observation(
      *model,
      [&](const torch::Tensor& x, const std::vector<const Weight*>& weights, int64_t expert) {
        for (const Weight* weight : weights)
          if (expert != kNoExpert) rows[weight->name].push_back(x.size(0));
      });
  model->logits({some_tokens(1, 12), {}}).sum().backward();
  EXPECT_EQ(rows.size(), 6u);
  for (const auto& [name, counts] : rows) {
    ASSERT_EQ(counts.size(), 40u) << name;
    int64_t sum = 0;
    for (int64_t expert = 0; expert < 40; ++expert) {
      sum += counts[expert];
      const torch::Tensor gradient = model->find_weight(name)->value.grad()[expert];
      EXPECT_EQ(gradient.any().item<bool>(), counts[expert] > 0) << name << expert;
    }
    EXPECT_EQ(sum, 12 * tiny.experts_used) << name;
  }
}

TEST_F(LlamaTest, RoutersStayFloat32) {
  TinyLlama tiny;
  tiny.take_architecture("qwen3moe");
  const auto model = load(tiny), kept = load(tiny);
  const torch::NoGradGuard no_grad;
  for (Model* each : {model.get(), kept.get()}) each->set_compute_dtype(torch::kBFloat16);
  kept->keep_matrices_cast();
  EXPECT_EQ(kept->find_weight("blk.0.ffn_gate_inp.weight")->value.scalar_type(), torch::kFloat32);
  EXPECT_EQ(kept->find_weight("blk.0.ffn_up_exps.weight")->value.scalar_type(), torch::kBFloat16);
  const torch::Tensor tokens = some_tokens(1, 16);
  EXPECT_TRUE(torch::equal(kept->logits({tokens, {}}), model->logits({tokens, {}})));
}

TEST_F(LlamaTest, RopeSettingsChangeTheOutput) {
  const torch::Tensor tokens = some_tokens(1, 20);
  const torch::NoGradGuard no_grad;
  const torch::Tensor plain = load({})->logits({tokens, {}});
  TinyLlama other;
  other.extra.set("llama.rope.freq_base", 500.0f);
  EXPECT_GT(largest_difference(load(other)->logits({tokens, {}}), plain), 1000 * kTolerance);
  TinyLlama scaled;
  scaled.extra.set("llama.rope.scaling.factor", 4.0f);
  EXPECT_GT(largest_difference(load(scaled)->logits({tokens, {}}), plain), 1000 * kTolerance);
}

TEST_F(LlamaTest, RopeDivisorsAreReadAndAreNoWeight) {
  TinyLlama tiny;
  tiny.more_tensors = {{"rope_freqs.weight", {tiny.head_size() / 2}, GgmlType::kF32}};
  const auto model = load(tiny);
  EXPECT_EQ(model->find_weight("rope_freqs.weight"), nullptr);
  EXPECT_EQ(read_llama_options(GgufFile::open(path_)).rope.divisors.size(), 0u);
  const torch::Tensor tokens = some_tokens(1, 20);
  const torch::NoGradGuard no_grad;
  EXPECT_GT(largest_difference(model->logits({tokens, {}}), load({})->logits({tokens, {}})),
            1000 * kTolerance);
}

// Angles of random divisors: of short documents the one set, of long ones the other.
TEST_F(LlamaTest, LongDocumentsAreTurnedByDivisorsOfTheirOwn) {
  TinyLlama tiny;
  tiny.take_architecture("phi3");
  tiny.extra.set("phi3.rope.scaling.original_context_length", uint32_t{16});
  tiny.more_tensors = {{"rope_factors_long.weight", {3}, GgmlType::kF32}};
  EXPECT_EQ(complaint(tiny).find(
                path_ + ": has one of rope_factors_short.weight and rope_factors_long.weight"),
            0u)
      << complaint(tiny);
  tiny.more_tensors.push_back({"rope_factors_short.weight", {3}, GgmlType::kF32});
  const auto model = load(tiny);
  EXPECT_EQ(model->find_weight("rope_factors_long.weight"), nullptr);
  const torch::Tensor tokens = some_tokens(1, 24);
  const torch::NoGradGuard no_grad;
  // A position knows those before it only, so that nothing but the turning can differ.
  const torch::Tensor whole = model->hidden({tokens, {}})[0].narrow(0, 0, 16);
  const torch::Tensor beginning = model->hidden({tokens.narrow(1, 0, 16), {}})[0];
  const torch::Tensor next = model->hidden({tokens.narrow(1, 0, 17), {}})[0].narrow(0, 0, 16);
  EXPECT_LT(largest_difference(whole, next), kTolerance);
  EXPECT_GT(largest_difference(whole, beginning), 1000 * kTolerance);

  const auto cache = model->new_cache();
  EXPECT_LT(largest_difference(model->hidden_next(tokens[0].narrow(0, 0, 16), *cache), beginning),
            kTolerance);
  EXPECT_THROW(model->hidden_next(tokens[0].narrow(0, 16, 1), *cache), Error);
}

TEST_F(LlamaTest, CopyHasItsOwnWeights) {
  const auto model = load({});
  const auto copy = copy_model(*model);
  const torch::Tensor tokens = some_tokens(1, 8);
  const torch::NoGradGuard no_grad;
  const torch::Tensor before = model->logits({tokens, {}});
  EXPECT_TRUE(torch::equal(copy->logits({tokens, {}}), before));
  EXPECT_EQ(copy->num_parameters(), model->num_parameters());
  for (Weight* weight : copy->weights()) weight->value.zero_();
  EXPECT_TRUE(torch::equal(model->logits({tokens, {}}), before));
}

TEST_F(LlamaTest, Bfloat16IsCloseAndDifferent) {
  const auto model = load({});
  const torch::Tensor tokens = some_tokens(1, 16);
  const torch::NoGradGuard no_grad;
  const torch::Tensor exact = model->logits({tokens, {}});
  model->set_compute_dtype(torch::kBFloat16);
  const torch::Tensor rounded = model->logits({tokens, {}});
  EXPECT_EQ(rounded.scalar_type(), torch::kFloat32);
  // bfloat16 keeps 8 bits: 0.4 % a rounding, and about ten of them add up on logits of size 4.
  EXPECT_LT(largest_difference(rounded, exact), 0.3);
  EXPECT_GT(largest_difference(rounded, exact), 1e-3);
}

}  // namespace
}  // namespace nibble
