#include "model/llama.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <map>

#include "base/error.h"
#include "tests/io/temporary_folder.h"
#include "tests/model/tiny_llama.h"

namespace nibble {
namespace {

// Two layers of float32 sums, each of at most 50 terms of unit size, against double or another
// order.
constexpr double kTolerance = 2e-5;

/// A gated delta net's norm divides by what is next to 0 where a query stands at right angles to
/// all that was learned: in four such layers errors grew to 4e-4.
double tolerance_of(const TinyLlama& tiny) { return tiny.is_hybrid() ? 1e-3 : kTolerance; }

class LlamaTest : public testing::Test {
 protected:
  std::unique_ptr<Model> load(const TinyLlama& tiny) {
    tiny.write(path_);
    return load_model(GgufFile::open(path_));
  }
  /// What loading says, or "" when it succeeds.
  std::string complaint(const TinyLlama& tiny) {
    try {
      load(tiny);
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }
  void expect_complaint(const TinyLlama& tiny, const std::vector<std::string>& parts) {
    const std::string text = complaint(tiny);
    EXPECT_EQ(text.find(path_), 0u) << text;
    for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << text;
  }

  TemporaryFolder folder_;
  std::string path_ = folder_.file("tiny.gguf");
};

torch::Tensor some_tokens(int64_t rows, int64_t length) {
  torch::manual_seed(11);
  return torch::randint(50, {rows, length}, torch::kInt64);
}

double largest_difference(const torch::Tensor& a, const torch::Tensor& b) {
  return (a.to(torch::kFloat64) - b.to(torch::kFloat64)).abs().max().item<double>();
}

/// The architecture once more, as its formulas say, in float64 and plain operators.
class PlainLlama {
 public:
  PlainLlama(Model& model, const TinyLlama& tiny) : tiny_(tiny) {
    for (const Weight* weight : model.weights())
      weights_[weight->name] = weight->value.detach().to(torch::kFloat64).requires_grad_(true);
  }
  torch::Tensor& weight(const std::string& name) { return weights_.at(name); }
  /// Of each layer with experts, their probabilities [T, E].
  std::vector<torch::Tensor> routed;

  /// One document, tokens [T]: logits [T, V].
  torch::Tensor logits(const torch::Tensor& tokens) {
    torch::Tensor x = weight("token_embd.weight").index_select(0, tokens);
    x = x *
        (tiny_.is_gemma() ? std::sqrt(static_cast<double>(tiny_.width)) : tiny_.embedding_scale);
    for (int64_t layer = 0; layer < tiny_.layers; ++layer) {
      const std::string prefix = "blk." + std::to_string(layer) + ".";
      const torch::Tensor in = norm(x, prefix + "attn_norm");
      const torch::Tensor attended =
          tiny_.has_delta_net(layer) ? linear(delta_net(in, prefix), prefix + "ssm_out")
                                     : linear(attention(in, prefix, layer), prefix + "attn_output");
      x = x + tiny_.residual_scale * normed_after(attended, prefix + "post_attention_norm");
      const torch::Tensor normed =
          norm(x, prefix + (tiny_.names_norm_by_attention() ? "post_attention_norm" : "ffn_norm"));
      if (tiny_.experts > 0) {
        x = x + mixture(normed, prefix);
        continue;
      }
      const torch::Tensor up = linear(normed, prefix + "ffn_up");
      const torch::Tensor wide = tiny_.is_fused()
                                     ? activation(up.chunk(2, 1)[0]) * up.chunk(2, 1)[1]
                                     : activation(linear(normed, prefix + "ffn_gate")) * up;
      x = x + tiny_.residual_scale *
                  normed_after(linear(wide, prefix + "ffn_down"), prefix + "post_ffw_norm");
    }
    const torch::Tensor logits =
        norm(x, "output_norm").mm(weight(tiny_.tied ? "token_embd.weight" : "output.weight").t());
    return capped(logits / tiny_.logit_scale, tiny_.logit_cap);
  }

 private:
  torch::Tensor capped(const torch::Tensor& x, double cap) const {
    return cap > 0 ? cap * at::tanh(x / cap) : x;
  }
  torch::Tensor norm(const torch::Tensor& x, const std::string& name) {
    return x / (x.square().mean(-1, true) + 1e-5).sqrt() * weight(name + ".weight");
  }
  torch::Tensor normed_after(const torch::Tensor& x, const std::string& name) {
    return tiny_.is_gemma() ? norm(x, name) : x;
  }
  /// SiLU, or GELU by tanh.
  torch::Tensor activation(const torch::Tensor& x) const {
    if (!tiny_.is_gemma()) return x * at::sigmoid(x);
    return 0.5 * x * (1 + at::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  }
  torch::Tensor linear(const torch::Tensor& x, const std::string& name) {
    const torch::Tensor y = x.mm(weight(name + ".weight").t());
    return weights_.count(name + ".bias") > 0 ? y + weight(name + ".bias") : y;
  }
  /// Every expert at every position, by weights of which all but the largest are 0.
  torch::Tensor mixture(const torch::Tensor& x, const std::string& prefix) {
    const torch::Tensor all = at::softmax(linear(x, prefix + "ffn_gate_inp"), -1);
    routed.push_back(all);
    const torch::Tensor least =
        std::get<0>(at::topk(all, tiny_.experts_used, -1)).narrow(1, tiny_.experts_used - 1, 1);
    const torch::Tensor kept = all * (all >= least);
    const torch::Tensor shares = kept / kept.sum(-1, true);
    torch::Tensor sum = torch::zeros_like(x);
    for (int64_t e = 0; e < tiny_.experts; ++e) {
      const auto by = [&](const torch::Tensor& in, const char* name) {
        const torch::Tensor y = in.mm(weight(prefix + name + ".weight")[e].t());
        return tiny_.is_gpt_oss() ? y + weight(prefix + name + ".bias")[e] : y;
      };
      const torch::Tensor gate = by(x, "ffn_gate_exps"), up = by(x, "ffn_up_exps");
      const torch::Tensor active =
          tiny_.is_gpt_oss()
              ? gate.clamp_max(7) * at::sigmoid(1.702 * gate.clamp_max(7)) * (up.clamp(-7, 7) + 1)
              : activation(gate) * up;
      sum = sum + shares.narrow(1, e, 1) * by(active, "ffn_down_exps");
    }
    if (!tiny_.has_shared_expert()) return sum;
    const torch::Tensor wide =
        activation(linear(x, prefix + "ffn_gate_shexp")) * linear(x, prefix + "ffn_up_shexp");
    return sum + at::sigmoid(linear(x, prefix + "ffn_gate_inp_shexp")) *
                     linear(wide, prefix + "ffn_down_shexp");
  }
  torch::Tensor attention(const torch::Tensor& x, const std::string& prefix, int64_t layer) {
    const bool windowed = tiny_.has_window(layer);
    const bool turned = tiny_.architecture != "smollm3" || layer != 3;
    const int64_t length = x.size(0), size = tiny_.head_size();
    const auto part = [&](const char* name, int64_t first, int64_t heads) {
      if (!tiny_.is_fused()) return linear(x, prefix + name);
      return linear(x, prefix + "attn_qkv").narrow(1, first * size, heads * size);
    };
    torch::Tensor q = part("attn_q", 0, tiny_.heads), gate;
    if (tiny_.is_hybrid()) {
      const torch::Tensor both = q.view({length, tiny_.heads, 2, size});
      q = both.select(2, 0).flatten(1);
      gate = at::sigmoid(both.select(2, 1).flatten(1));
    }
    const torch::Tensor k = part("attn_k", tiny_.heads, tiny_.kv_heads),
                        v = part("attn_v", tiny_.heads + tiny_.kv_heads, tiny_.kv_heads);
    torch::Tensor unseen = at::ones({length, length}, torch::kBool).triu(1);
    if (windowed) unseen = unseen.logical_or(at::ones_like(unseen).tril(-tiny_.window));
    const double scale = tiny_.attention_scale > 0 ? tiny_.attention_scale
                                                   : 1 / std::sqrt(static_cast<double>(size));
    const double base = windowed ? 10000.0 : tiny_.rope_base;
    const auto turned_head = [&](const torch::Tensor& head) {
      return turned ? turn(head, base) : head;
    };
    std::vector<torch::Tensor> heads;
    for (int64_t head = 0; head < tiny_.heads; ++head) {
      const int64_t group = head / (tiny_.heads / tiny_.kv_heads);
      const torch::Tensor query = turned_head(head_of(q, head, prefix + "attn_q_norm"));
      const torch::Tensor key = turned_head(head_of(k, group, prefix + "attn_k_norm"));
      torch::Tensor scores =
          capped(query.mm(key.t()) * scale, tiny_.attention_cap).masked_fill(unseen, -INFINITY);
      if (tiny_.is_gpt_oss())
        scores =
            at::cat({scores, weight(prefix + "attn_sinks.weight")[head].expand({length, 1})}, 1);
      heads.push_back(
          at::softmax(scores, -1).narrow(1, 0, length).mm(v.narrow(1, group * size, size)));
    }
    return gate.defined() ? at::cat(heads, 1) * gate : at::cat(heads, 1);
  }
  /// Position by position.
  torch::Tensor delta_net(const torch::Tensor& x, const std::string& prefix) {
    constexpr int64_t kSize = TinyLlama::kDeltaSize, kHeads = TinyLlama::kValueHeads,
                      kKeys = TinyLlama::kKeyHeads * kSize, kLags = TinyLlama::kKernel;
    const torch::Tensor mixed = linear(x, prefix + "attn_qkv"),
                        kernel = weight(prefix + "ssm_conv1d.weight");
    constexpr int64_t kShares = kHeads / TinyLlama::kKeyHeads;
    torch::Tensor beta, alpha;
    if (tiny_.shares_neighbours()) {
      const torch::Tensor both =
          linear(x, prefix + "ssm_ba").view({x.size(0), TinyLlama::kKeyHeads, 2 * kShares});
      beta = both.narrow(2, 0, kShares).flatten(1);
      alpha = both.narrow(2, kShares, kShares).flatten(1);
    } else {
      beta = linear(x, prefix + "ssm_beta");
      alpha = linear(x, prefix + "ssm_alpha");
    }
    beta = at::sigmoid(beta);
    const torch::Tensor decay = at::exp(weight(prefix + "ssm_a") *
                                        at::log1p(at::exp(alpha + weight(prefix + "ssm_dt.bias"))));
    torch::Tensor state = at::zeros({kHeads, kSize, kSize}, torch::kFloat64);
    std::vector<torch::Tensor> outputs;
    for (int64_t t = 0; t < x.size(0); ++t) {
      torch::Tensor sum = at::zeros_like(mixed[0]);
      for (int64_t lag = 0; lag <= std::min(t, kLags - 1); ++lag)
        sum = sum + mixed[t - lag] * kernel.select(1, kLags - 1 - lag);
      sum = sum * at::sigmoid(sum);
      const auto unit = [&](int64_t begin) {
        const torch::Tensor heads = sum.narrow(0, begin, kKeys).view({-1, kSize});
        const torch::Tensor units = heads / (heads.square().sum(-1, true) + 1e-5).sqrt();
        return tiny_.shares_neighbours() ? units.repeat_interleave(kShares, 0)
                                         : units.repeat({kShares, 1});
      };
      const torch::Tensor q = unit(0) / std::sqrt(kSize), k = unit(kKeys),
                          v = sum.narrow(0, 2 * kKeys, kHeads * kSize).view({kHeads, kSize});
      state = state * decay[t].view({kHeads, 1, 1});
      const torch::Tensor found = at::einsum("hij,hi->hj", {state, k});
      state = state + at::einsum("hi,hj->hij", {k, (v - found) * beta[t].unsqueeze(1)});
      outputs.push_back(norm(at::einsum("hij,hi->hj", {state, q}), prefix + "ssm_norm").flatten());
    }
    const torch::Tensor gate = linear(x, prefix + "attn_gate");
    return at::stack(outputs) * gate * at::sigmoid(gate);
  }
  torch::Tensor head_of(const torch::Tensor& x, int64_t head, const std::string& norm_name) {
    const torch::Tensor part = x.narrow(1, head * tiny_.head_size(), tiny_.head_size());
    return weights_.count(norm_name + ".weight") > 0 ? norm(part, norm_name) : part;
  }
  torch::Tensor turn(const torch::Tensor& whole, double base) {
    if (tiny_.turned > 0 && tiny_.turned < whole.size(1))
      return at::cat({turn(whole.narrow(1, 0, tiny_.turned), base),
                      whole.narrow(1, tiny_.turned, whole.size(1) - tiny_.turned)},
                     1);
    const torch::Tensor& x = whole;
    const int64_t length = x.size(0), size = x.size(1);
    const torch::Tensor position = at::arange(length, torch::kFloat64).unsqueeze(1);
    const torch::Tensor angle =
        position * at::pow(base, at::arange(0, size, 2, torch::kFloat64) * (-1.0 / size));
    if (tiny_.turns_halves()) {
      const torch::Tensor a = x.narrow(1, 0, size / 2), b = x.narrow(1, size / 2, size / 2);
      return at::cat({a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()}, 1);
    }
    const torch::Tensor pairs = x.reshape({length, size / 2, 2});
    const torch::Tensor a = pairs.select(2, 0), b = pairs.select(2, 1);
    return at::stack({a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()}, 2)
        .flatten(1);
  }

  TinyLlama tiny_;
  std::map<std::string, torch::Tensor> weights_;
};

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
  expect_complaint(tiny, {"has one of rope_factors_short.weight and rope_factors_long.weight"});
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

TEST_F(LlamaTest, MistakesInTheFileAreNamed) {
  TinyLlama tiny;
  tiny.missing = {"blk.1.ffn_up.weight"};
  expect_complaint(tiny, {"blk.1.ffn_up.weight", "[32 x 40]", "missing"});

  tiny = {};
  tiny.missing = {"blk.0.attn_k.weight"};
  tiny.more_tensors = {{"blk.0.attn_k.weight", {32, 15}, GgmlType::kF32}};
  expect_complaint(tiny, {"blk.0.attn_k.weight", "[32 x 15]", "[32 x 16]"});

  tiny = {};
  tiny.more_tensors = {{"blk.0.ffn_gate_inp.weight", {32, 4}, GgmlType::kF32}};
  expect_complaint(tiny, {"blk.0.ffn_gate_inp.weight", "no such tensor"});

  tiny = {};
  tiny.extra.set("general.architecture", std::string("mamba"));
  expect_complaint(tiny, {"unknown architecture 'mamba'", "llama"});

  tiny = {};
  tiny.architecture = "qwen3";
  tiny.missing = {"blk.1.attn_k_norm.weight"};
  expect_complaint(tiny, {"blk.1.attn_k_norm.weight", "[8]", "missing"});

  tiny = {};
  tiny.architecture = "qwen2";
  tiny.more_tensors = {{"blk.0.attn_output.bias", {32}, GgmlType::kF32}};
  expect_complaint(tiny, {"blk.0.attn_output.bias", "no such tensor"});

  tiny = {};
  tiny.take_architecture("gemma3");
  tiny.extra.set("gemma3.attention.sliding_window_pattern", uint32_t{4});
  expect_complaint(tiny, {"gemma3.attention.sliding_window_pattern", "each layer number 6"});

  tiny = {};
  tiny.take_architecture("gemma2");
  tiny.extra.set("gemma2.final_logit_softcapping", 0.0f);
  expect_complaint(tiny, {"gemma2.final_logit_softcapping", "must be positive"});

  tiny = {};
  tiny.take_architecture("gemma2");
  tiny.tied = false;
  expect_complaint(tiny, {"output.weight", "no such tensor"});

  tiny = {};
  tiny.take_architecture("qwen35");
  tiny.missing = {"blk.2.ssm_conv1d.weight"};
  expect_complaint(tiny, {"blk.2.ssm_conv1d.weight", "[4 x 48]", "missing"});

  // Of five layers one that predicts further tokens has attention and four tensors more.
  tiny = {};
  tiny.take_architecture("qwen35");
  tiny.extra.set("qwen35.nextn_predict_layers", uint32_t{1});
  expect_complaint(tiny, {"blk.4.attn_q.weight", "missing"});
  tiny.extra.set("qwen35.nextn_predict_layers", uint32_t{5});
  expect_complaint(tiny, {"qwen35.nextn_predict_layers", "5, of 5 layers"});
  tiny.extra.set("qwen35.nextn_predict_layers", int32_t{-1});
  expect_complaint(tiny, {"qwen35.nextn_predict_layers", "-1, of 5 layers"});

  tiny = {};
  tiny.extra.set("llama.expert_count", uint32_t{8});
  expect_complaint(tiny, {"llama.expert_used_count"});

  tiny = {};
  tiny.architecture = "qwen2";
  tiny.extra.set("qwen2.expert_count", uint32_t{8});
  expect_complaint(tiny, {"qwen2.expert_count", "8", "no mixture of experts of qwen2"});

  tiny = {};
  tiny.take_architecture("qwen3moe");
  tiny.erased = {"qwen3moe.expert_count"};
  expect_complaint(tiny, {"qwen3moe.expert_count", "only mixtures of experts"});

  tiny = {};
  tiny.take_architecture("mixtral");
  tiny.extra.set("llama.expert_used_count", uint32_t{7});
  expect_complaint(tiny, {"llama.expert_used_count", "7", "of 6 experts"});

  tiny = {};
  tiny.take_architecture("mixtral");
  tiny.extra.set("llama.expert_group_count", uint32_t{2});
  expect_complaint(tiny, {"llama.expert_group_count", "no groups"});

  tiny = {};
  tiny.take_architecture("qwen3moe");
  tiny.missing = {"blk.1.ffn_up_exps.weight"};
  tiny.more_tensors = {{"blk.1.ffn_up_exps.weight", {32, 24, 5}, GgmlType::kF32}};
  expect_complaint(tiny, {"blk.1.ffn_up_exps.weight", "[32 x 24 x 5]", "[32 x 24 x 6]"});
}

TEST_F(LlamaTest, MissingAndImpossibleKeysAreNamed) {
  for (const std::string key :
       {"general.architecture", "llama.block_count", "llama.embedding_length",
        "llama.feed_forward_length", "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon", "llama.context_length"}) {
    TinyLlama tiny;
    tiny.erased = {key};
    expect_complaint(tiny, {key});
  }
  for (const std::string key : {"llama.block_count", "llama.attention.head_count"}) {
    TinyLlama tiny;
    tiny.extra.set(key, uint32_t{0});
    expect_complaint(tiny, {key, "positive"});
  }
  TinyLlama tiny;
  tiny.extra.set("llama.attention.head_count_kv", uint32_t{3});
  expect_complaint(tiny, {"llama.attention.head_count_kv", "divide"});
  tiny = {};
  tiny.extra.set("llama.rope.dimension_count", uint32_t{4});
  expect_complaint(tiny, {"llama.rope.dimension_count"});
}

}  // namespace
}  // namespace nibble
