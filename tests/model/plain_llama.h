#pragma once

#include <cmath>
#include <map>
#include <string>

#include "model/model.h"
#include "tests/model/tiny_llama.h"

namespace nibble {

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

}  // namespace nibble
