// A llama, or one of its relatives, in miniature, with random weights, written as a GGUF file.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "io/gguf.h"

namespace nibble {

struct TinyLlama {
  std::string architecture = "llama";
  int64_t layers = 2, width = 32, heads = 4, kv_heads = 2, feed_forward = 40, vocab = 50;
  int64_t window = 0;  // of gemmas and gpt-oss
  float attention_cap = 0, logit_cap = 0;
  // granite's
  float embedding_scale = 1, attention_scale = 0, residual_scale = 1, logit_scale = 1;
  int64_t turned = 0;  // elements of each head, where not all
  int64_t experts = 0, experts_used = 2;
  float rope_base = 10000.0f;
  bool tied = false, biases = false;
  uint32_t seed = 1;
  GgufMetadata extra;                // added to the metadata, or replacing it
  std::vector<std::string> erased;   // metadata keys left out
  std::vector<std::string> missing;  // tensors left out
  std::vector<GgufWriter::Tensor> more_tensors;

  int64_t head_size() const { return width / heads; }
  bool is_gemma() const { return architecture == "gemma2" || architecture == "gemma3"; }
  bool has_window(int64_t layer) const {
    const int64_t period = architecture == "gemma3" ? 6 : 2;
    return window > 0 && layer % period < period - 1;
  }
  /// qwen35, qwen35moe or qwen3next.
  bool is_hybrid() const {
    return architecture.starts_with("qwen35") || architecture == "qwen3next";
  }
  /// Value heads that share a key head lie side by side, alpha and beta in one matrix.
  bool shares_neighbours() const { return architecture == "qwen3next"; }
  bool has_shared_expert() const { return is_hybrid() && experts > 0; }
  static constexpr int64_t kShared = 20;  // how wide it is
  /// Its layers with a gated delta net, of 2 key heads, 4 value heads and such convolutions.
  static constexpr int64_t kKeyHeads = 2, kValueHeads = 4, kDeltaSize = 6, kKernel = 4;
  bool has_delta_net(int64_t layer) const { return is_hybrid() && layer % 4 < 3; }
  bool has_head_norms() const {
    return architecture.starts_with("qwen3") || architecture == "gemma3";
  }
  bool turns_halves() const {
    return architecture != "llama" && architecture != "smollm3" && architecture != "granite";
  }
  bool is_fused() const { return architecture == "phi3"; }
  bool is_gpt_oss() const { return architecture == "gpt-oss"; }
  /// Its norm before the feed-forward is called post_attention_norm.
  bool names_norm_by_attention() const { return is_hybrid() || is_gpt_oss(); }
  /// "mixtral" is a llama with experts. gemma3: seven layers, of which one has no window, and a
  /// rotation of its own. gemma2: three, of which one has no window, and caps well within what
  /// scores and logits reach. smollm3: five, of which one turns no heads. phi3: six of a head's
  /// eight elements turned. qwen35 and its relatives: five layers, of which one attends and turns
  /// half of each head. gpt-oss: three layers, of which one has no window.
  void take_architecture(const std::string& name) {
    architecture = name == "mixtral" ? "llama" : name;
    if (name == "mixtral" || name == "qwen3moe" || is_gpt_oss() ||
        (is_hybrid() && name != "qwen35"))
      experts = 6;
    if (is_gpt_oss()) {
      layers = 3;
      window = 6;
    }
    if (name == "smollm3" || is_hybrid()) layers = 5;
    if (is_hybrid()) turned = head_size() / 2;
    if (name == "phi3") extra.set("phi3.rope.dimension_count", static_cast<uint32_t>(turned = 6));
    if (name == "granite") {
      embedding_scale = 3;
      attention_scale = 0.5f;
      residual_scale = 0.25f;
      logit_scale = 2;
    }
    if (!is_gemma()) return;
    window = 6;
    if (name == "gemma3") {
      layers = 7;
      rope_base = 500.0f;
      return;
    }
    layers = 3;
    tied = true;
    attention_cap = 1.5f;
    logit_cap = 4;
  }
  int64_t expert_feed_forward() const { return architecture == "llama" ? feed_forward : 24; }
  /// gemma3, phi3 and qwen35 have no biases, and the others but llama and granite have some of q, k
  /// and v at most; gpt-oss has all of attention's in any case.
  bool has_bias(const std::string& name) const {
    if (is_gpt_oss()) return true;
    return biases && !is_gemma() && !is_fused() && !is_hybrid() &&
           (architecture == "llama" || architecture == "granite" || name == "attn_q" ||
            name == "attn_k" || name == "attn_v");
  }

  GgufMetadata metadata() const {
    GgufMetadata result;
    const auto set = [&](const std::string& key, int64_t value) {
      result.set(architecture + "." + key, static_cast<uint32_t>(value));
    };
    result.set("general.architecture", architecture);
    set("block_count", layers);
    set("embedding_length", width);
    set("context_length", 64);
    set("vocab_size", vocab);
    if (architecture != "qwen35moe") set("feed_forward_length", feed_forward);
    set("attention.head_count", heads);
    set("attention.head_count_kv", kv_heads);
    result.set(architecture + ".attention.layer_norm_rms_epsilon", 1e-5f);
    if (architecture == "granite") {
      result.set("granite.embedding_scale", embedding_scale);
      result.set("granite.attention.scale", attention_scale);
      result.set("granite.residual_scale", residual_scale);
      result.set("granite.logit_scale", logit_scale);
    }
    if (attention_cap > 0) result.set(architecture + ".attn_logit_softcapping", attention_cap);
    if (logit_cap > 0) result.set(architecture + ".final_logit_softcapping", logit_cap);
    if (window > 0) set("attention.sliding_window", window);
    if (experts > 0) {
      set("expert_count", experts);
      set("expert_used_count", experts_used);
      set("expert_feed_forward_length", expert_feed_forward());
      if (has_shared_expert()) set("expert_shared_feed_forward_length", kShared);
    }
    if (rope_base != 10000.0f) result.set(architecture + ".rope.freq_base", rope_base);
    if (is_hybrid()) {
      set("rope.dimension_count", turned);
      set("ssm.conv_kernel", kKernel);
      set("ssm.state_size", kDeltaSize);
      set("ssm.group_count", kKeyHeads);
      set("ssm.time_step_rank", kValueHeads);
      set("ssm.inner_size", kValueHeads * kDeltaSize);
    }
    for (const auto& [key, value] : extra.pairs()) result.set(key, value);
    for (const std::string& key : erased) result.erase(key);
    return result;
  }

  std::vector<GgufWriter::Tensor> tensors() const {
    std::vector<GgufWriter::Tensor> all;
    const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
      if (std::find(missing.begin(), missing.end(), name) == missing.end())
        all.push_back({name, std::move(shape), GgmlType::kF32});
    };
    const int64_t keys = kv_heads * head_size();
    add("token_embd.weight", {width, vocab});
    for (int64_t layer = 0; layer < layers; ++layer) {
      const std::string prefix = "blk." + std::to_string(layer) + ".";
      const auto linear = [&](const std::string& name, int64_t in, int64_t out) {
        add(prefix + name + ".weight", {in, out});
        if (has_bias(name)) add(prefix + name + ".bias", {out});
      };
      add(prefix + "attn_norm.weight", {width});
      if (is_fused()) linear("attn_qkv", width, width + 2 * keys);
      if (has_delta_net(layer)) {
        const int64_t values = kValueHeads * kDeltaSize,
                      mixed = 2 * kKeyHeads * kDeltaSize + values;
        linear("attn_qkv", width, mixed);
        linear("attn_gate", width, values);
        add(prefix + "ssm_conv1d.weight", {kKernel, mixed});
        add(prefix + "ssm_dt.bias", {kValueHeads});
        add(prefix + "ssm_a", {kValueHeads});
        if (shares_neighbours()) {
          linear("ssm_ba", width, 2 * kValueHeads);
        } else {
          linear("ssm_beta", width, kValueHeads);
          linear("ssm_alpha", width, kValueHeads);
        }
        add(prefix + "ssm_norm.weight", {kDeltaSize});
        linear("ssm_out", values, width);
      } else if (!is_fused()) {
        linear("attn_q", width, is_hybrid() ? 2 * width : width);
        linear("attn_k", width, keys);
        linear("attn_v", width, keys);
      }
      if (has_head_norms() && !has_delta_net(layer)) {
        add(prefix + "attn_q_norm.weight", {head_size()});
        add(prefix + "attn_k_norm.weight", {head_size()});
      }
      if (!has_delta_net(layer)) linear("attn_output", width, width);
      if (is_gpt_oss()) add(prefix + "attn_sinks.weight", {heads});
      if (is_gemma() || names_norm_by_attention())
        add(prefix + "post_attention_norm.weight", {width});
      if (!names_norm_by_attention()) add(prefix + "ffn_norm.weight", {width});
      if (experts > 0) {
        add(prefix + "ffn_gate_inp.weight", {width, experts});
        add(prefix + "ffn_gate_exps.weight", {width, expert_feed_forward(), experts});
        add(prefix + "ffn_up_exps.weight", {width, expert_feed_forward(), experts});
        add(prefix + "ffn_down_exps.weight", {expert_feed_forward(), width, experts});
        if (is_gpt_oss()) {
          add(prefix + "ffn_gate_inp.bias", {experts});
          add(prefix + "ffn_gate_exps.bias", {expert_feed_forward(), experts});
          add(prefix + "ffn_up_exps.bias", {expert_feed_forward(), experts});
          add(prefix + "ffn_down_exps.bias", {width, experts});
        }
        if (has_shared_expert()) {
          // A vector, or a matrix of one row: files have both.
          const std::string router = prefix + "ffn_gate_inp_shexp.weight";
          add(router,
              shares_neighbours() ? std::vector<int64_t>{width} : std::vector{width, int64_t{1}});
          linear("ffn_gate_shexp", width, kShared);
          linear("ffn_up_shexp", width, kShared);
          linear("ffn_down_shexp", kShared, width);
        }
      } else {
        if (!is_fused()) linear("ffn_gate", width, feed_forward);
        linear("ffn_up", width, is_fused() ? 2 * feed_forward : feed_forward);
        linear("ffn_down", feed_forward, width);
      }
      if (is_gemma()) add(prefix + "post_ffw_norm.weight", {width});
    }
    add("output_norm.weight", {width});
    if (!tied) add("output.weight", {width, vocab});
    all.insert(all.end(), more_tensors.begin(), more_tensors.end());
    return all;
  }

  /// Matrices ~ N(0, 2 / row length), norms around 1: activations keep their size, attention is not
  /// flat.
  void write(const std::string& path) const {
    const std::vector<GgufWriter::Tensor> table = tensors();
    GgufWriter writer(path, metadata(), table);
    std::mt19937 random(seed);
    for (const GgufWriter::Tensor& tensor : table) {
      int64_t count = 1;
      for (const int64_t size : tensor.shape) count *= size;
      const bool norm = tensor.name.find("norm") != std::string::npos;
      std::normal_distribution<float> distribution(norm ? 1.0f : 0.0f,
                                                   norm ? 0.2f : std::sqrt(2.0f / tensor.shape[0]));
      std::vector<float> values(count);
      for (float& value : values) value = distribution(random);
      if (tensor.name.ends_with("ssm_a"))
        for (float& value : values) value = -std::abs(value);
      writer.write(std::as_bytes(std::span(values)));
    }
    writer.finish();
  }
};

}  // namespace nibble
