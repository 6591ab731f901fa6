#include "model/llama_tensors.h"

#include <algorithm>
#include <iterator>

namespace nibble {
namespace {

constexpr LlamaSize kOne = LlamaSize::kOne, kWidth = LlamaSize::kWidth, kQuery = LlamaSize::kQuery,
                    kKey = LlamaSize::kKey, kHead = LlamaSize::kHead, kHeads = LlamaSize::kHeads,
                    kFeedForward = LlamaSize::kFeedForward, kExperts = LlamaSize::kExperts,
                    kExpertFeedForward = LlamaSize::kExpertFeedForward,
                    kSharedFeedForward = LlamaSize::kSharedFeedForward;
using L = LlamaLayer;

/// Architectures as bits of a set; what has two kinds of layers is two bits.
enum : unsigned {
  kLlama = 1 << 0,
  kQwen2 = 1 << 1,
  kQwen3 = 1 << 2,
  kGemma3 = 1 << 3,
  kSmolLm3 = 1 << 4,
  kPhi3 = 1 << 5,
  kGemma2 = 1 << 6,
  kGranite = 1 << 7,
  kMixtral = 1 << 8,
  kQwen3Moe = 1 << 9,
  kQwen35 = 1 << 10,
  kQwen35Delta = 1 << 11,
  kQwen35Moe = 1 << 12,
  kQwen35MoeDelta = 1 << 13,
  kQwen3Next = 1 << 14,
  kQwen3NextDelta = 1 << 15,
  kGptOss = 1 << 16,
  kAll = ~0U,
  kGated = kQwen35 | kQwen35Moe | kQwen3Next,
  kDeltas = kQwen35Delta | kQwen35MoeDelta | kQwen3NextDelta,
  kHybrids = kGated | kDeltas,
  kShared =
      kHybrids & ~(kQwen35 | kQwen35Delta),  // with an expert that every position goes through
  kAttends = kAll & ~kDeltas,
  kSplitDeltas = kDeltas & ~kQwen3NextDelta,  // a matrix each for alpha, beta and the gate
  kGemmas = kGemma2 | kGemma3,
  kLlamas = kLlama | kMixtral,
  kQwen3s = kQwen3 | kQwen3Moe,
  kQwenMixtures = kQwen3Moe | kShared,
  kMixtures = kMixtral | kQwenMixtures | kGptOss,
  kSplit = kAll & ~kPhi3,  // a matrix each for queries, keys, values, gate and up
  kFfnNorm = kAll & ~(kGemmas | kHybrids | kGptOss),
};

// slot, GGUF's name, Hugging Face's name, row length, rows, turned, who must have it, who may
constexpr LlamaTensorRow kRows[] = {
    {&L::attention_norm, "attn_norm.weight", "input_layernorm.weight", kWidth, kOne, false, kAll},
    {&L::query, "attn_q.weight", "self_attn.q_proj.weight", kWidth, kQuery, true,
     kSplit& kAttends & ~kGated},
    {&L::query, "attn_q.weight", "self_attn.q_proj.weight", kWidth, LlamaSize::kGatedQuery, false,
     kGated},
    {&L::key, "attn_k.weight", "self_attn.k_proj.weight", kWidth, kKey, true, kSplit& kAttends},
    {&L::value, "attn_v.weight", "self_attn.v_proj.weight", kWidth, kKey, false, kSplit& kAttends},
    {&L::query_key_value, "attn_qkv.weight", "self_attn.qkv_proj.weight", kWidth,
     LlamaSize::kQueryKeyValue, false, kPhi3},
    {&L::attention_output, "attn_output.weight", "self_attn.o_proj.weight", kQuery, kWidth, false,
     kAttends},
    {&L::query_bias, "attn_q.bias", "self_attn.q_proj.bias", kQuery, kOne, true, kGptOss,
     kLlamas | kQwen2 | kQwen3s | kSmolLm3 | kGranite},
    {&L::key_bias, "attn_k.bias", "self_attn.k_proj.bias", kKey, kOne, true, kGptOss,
     kLlamas | kQwen2 | kQwen3s | kSmolLm3 | kGranite},
    {&L::value_bias, "attn_v.bias", "self_attn.v_proj.bias", kKey, kOne, false, kGptOss,
     kLlamas | kQwen2 | kQwen3s | kSmolLm3 | kGranite},
    {&L::attention_output_bias, "attn_output.bias", "self_attn.o_proj.bias", kWidth, kOne, false,
     kGptOss, kLlamas | kGranite},
    {&L::sinks, "attn_sinks.weight", "self_attn.sinks", kHeads, kOne, false, kGptOss},
    {&L::query_norm, "attn_q_norm.weight", "self_attn.q_norm.weight", kHead, kOne, false,
     kQwen3s | kGemma3 | kGated},
    {&L::key_norm, "attn_k_norm.weight", "self_attn.k_norm.weight", kHead, kOne, false,
     kQwen3s | kGemma3 | kGated},
    {&L::feed_forward_norm, "ffn_norm.weight", "post_attention_layernorm.weight", kWidth, kOne,
     false, kFfnNorm},
    {&L::feed_forward_norm, "post_attention_norm.weight", "post_attention_layernorm.weight", kWidth,
     kOne, false, kHybrids | kGptOss},
    {&L::gate, "ffn_gate.weight", "mlp.gate_proj.weight", kWidth, kFeedForward, false,
     kSplit & ~kMixtures},
    {&L::up, "ffn_up.weight", "mlp.up_proj.weight", kWidth, kFeedForward, false,
     kSplit & ~kMixtures},
    {&L::gate_up, "ffn_up.weight", "mlp.gate_up_proj.weight", kWidth, LlamaSize::kGateUp, false,
     kPhi3},
    {&L::down, "ffn_down.weight", "mlp.down_proj.weight", kFeedForward, kWidth, false,
     kAll & ~kMixtures},
    {&L::gate_bias, "ffn_gate.bias", "mlp.gate_proj.bias", kFeedForward, kOne, false, 0,
     kLlama | kGranite},
    {&L::up_bias, "ffn_up.bias", "mlp.up_proj.bias", kFeedForward, kOne, false, 0,
     kLlama | kGranite},
    {&L::down_bias, "ffn_down.bias", "mlp.down_proj.bias", kWidth, kOne, false, 0,
     kLlama | kGranite},
    {&L::router, "ffn_gate_inp.weight", "block_sparse_moe.gate.weight", kWidth, kExperts, false,
     kMixtral},
    {&L::gate_experts, "ffn_gate_exps.weight", "block_sparse_moe.experts.*.w1.weight", kWidth,
     kExpertFeedForward, false, kMixtral},
    {&L::up_experts, "ffn_up_exps.weight", "block_sparse_moe.experts.*.w3.weight", kWidth,
     kExpertFeedForward, false, kMixtral},
    {&L::down_experts, "ffn_down_exps.weight", "block_sparse_moe.experts.*.w2.weight",
     kExpertFeedForward, kWidth, false, kMixtral},
    {&L::router, "ffn_gate_inp.weight", "mlp.gate.weight", kWidth, kExperts, false, kQwenMixtures},
    {&L::gate_experts, "ffn_gate_exps.weight", "mlp.experts.*.gate_proj.weight", kWidth,
     kExpertFeedForward, false, kQwenMixtures},
    {&L::up_experts, "ffn_up_exps.weight", "mlp.experts.*.up_proj.weight", kWidth,
     kExpertFeedForward, false, kQwenMixtures},
    {&L::down_experts, "ffn_down_exps.weight", "mlp.experts.*.down_proj.weight", kExpertFeedForward,
     kWidth, false, kQwenMixtures},
    {&L::router, "ffn_gate_inp.weight", "mlp.router.weight", kWidth, kExperts, false, kGptOss},
    {&L::router_bias, "ffn_gate_inp.bias", "mlp.router.bias", kExperts, kOne, false, kGptOss},
    {&L::gate_experts, "ffn_gate_exps.weight", "mlp.experts.gate_up_proj", kWidth,
     kExpertFeedForward, false, kGptOss},
    {&L::up_experts, "ffn_up_exps.weight", "mlp.experts.gate_up_proj", kWidth, kExpertFeedForward,
     false, kGptOss},
    {&L::down_experts, "ffn_down_exps.weight", "mlp.experts.down_proj", kExpertFeedForward, kWidth,
     false, kGptOss},
    {&L::gate_experts_bias, "ffn_gate_exps.bias", "mlp.experts.gate_up_proj_bias",
     kExpertFeedForward, kOne, false, kGptOss},
    {&L::up_experts_bias, "ffn_up_exps.bias", "mlp.experts.gate_up_proj_bias", kExpertFeedForward,
     kOne, false, kGptOss},
    {&L::down_experts_bias, "ffn_down_exps.bias", "mlp.experts.down_proj_bias", kWidth, kOne, false,
     kGptOss},
    {&L::shared_router, "ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight", kWidth,
     LlamaSize::kSingle, false, kShared},
    {&L::shared_gate, "ffn_gate_shexp.weight", "mlp.shared_expert.gate_proj.weight", kWidth,
     kSharedFeedForward, false, kShared},
    {&L::shared_up, "ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight", kWidth,
     kSharedFeedForward, false, kShared},
    {&L::shared_down, "ffn_down_shexp.weight", "mlp.shared_expert.down_proj.weight",
     kSharedFeedForward, kWidth, false, kShared},
    {&L::post_attention_norm, "post_attention_norm.weight", "post_attention_layernorm.weight",
     kWidth, kOne, false, kGemmas},
    {&L::feed_forward_norm, "ffn_norm.weight", "pre_feedforward_layernorm.weight", kWidth, kOne,
     false, kGemmas},
    {&L::post_feed_forward_norm, "post_ffw_norm.weight", "post_feedforward_layernorm.weight",
     kWidth, kOne, false, kGemmas},
    {&L::delta_mixed, "attn_qkv.weight", "linear_attn.in_proj_qkv.weight", kWidth,
     LlamaSize::kDeltaMixed, false, kSplitDeltas},
    {&L::delta_gate, "attn_gate.weight", "linear_attn.in_proj_z.weight", kWidth,
     LlamaSize::kDeltaValue, false, kSplitDeltas},
    {&L::delta_mixed, "attn_qkv.weight", "linear_attn.in_proj_qkvz.weight", kWidth,
     LlamaSize::kDeltaMixed, false, kQwen3NextDelta},
    {&L::delta_gate, "attn_gate.weight", "linear_attn.in_proj_qkvz.weight", kWidth,
     LlamaSize::kDeltaValue, false, kQwen3NextDelta},
    {&L::delta_beta_alpha, "ssm_ba.weight", "linear_attn.in_proj_ba.weight", kWidth,
     LlamaSize::kDeltaBetaAlpha, false, kQwen3NextDelta},
    {&L::delta_alpha, "ssm_alpha.weight", "linear_attn.in_proj_a.weight", kWidth,
     LlamaSize::kDeltaHeads, false, kSplitDeltas},
    {&L::delta_beta, "ssm_beta.weight", "linear_attn.in_proj_b.weight", kWidth,
     LlamaSize::kDeltaHeads, false, kSplitDeltas},
    {&L::delta_kernel, "ssm_conv1d.weight", "linear_attn.conv1d.weight", LlamaSize::kDeltaKernel,
     LlamaSize::kDeltaMixed, false, kDeltas},
    {&L::delta_decay, "ssm_a", "linear_attn.A_log", LlamaSize::kDeltaHeads, kOne, false, kDeltas},
    {&L::delta_time_step, "ssm_dt.bias", "linear_attn.dt_bias", LlamaSize::kDeltaHeads, kOne, false,
     kDeltas},
    {&L::delta_norm, "ssm_norm.weight", "linear_attn.norm.weight", LlamaSize::kDeltaHead, kOne,
     false, kDeltas},
    {&L::attention_output, "ssm_out.weight", "linear_attn.out_proj.weight", LlamaSize::kDeltaValue,
     kWidth, false, kDeltas},
};

constexpr LlamaModelTensor kModelTensors[] = {
    {kTokenEmbedding, "model.embed_tokens.weight", kWidth, LlamaSize::kVocab, Presence::kRequired},
    {kOutputNorm, "model.norm.weight", kWidth, kOne, Presence::kRequired},
    {kOutput, "lm_head.weight", kWidth, LlamaSize::kVocab, Presence::kOptional},
};

constexpr LlamaModelTensor kMtpTensors[] = {
    {"nextn.eh_proj.weight", "mtp.fc.weight", LlamaSize::kTwoWidths, kWidth, Presence::kRequired},
    {"nextn.enorm.weight", "mtp.pre_fc_norm_embedding.weight", kWidth, kOne, Presence::kRequired},
    {"nextn.hnorm.weight", "mtp.pre_fc_norm_hidden.weight", kWidth, kOne, Presence::kRequired},
    {"nextn.shared_head_norm.weight", "mtp.norm.weight", kWidth, kOne, Presence::kOptional},
};

constexpr LlamaArchitecture kArchitectures[] = {
    {.name = "llama", .bit = kLlama},
    {.name = "qwen2", .bit = kQwen2, .turns_halves = true},
    {.name = "qwen3", .bit = kQwen3, .turns_halves = true},
    {.name = "gemma2",
     .bit = kGemma2,
     .turns_halves = true,
     .is_gemma = true,
     .window_period = 2,
     .layers_of_27b = 46,
     .is_always_tied = true},
    {.name = "gemma3",
     .bit = kGemma3,
     .turns_halves = true,
     .is_gemma = true,
     .window_period = 6,
     .layers_of_27b = 62},
    {.name = "llama", .bit = kMixtral, .has_experts = true},
    {.name = "qwen3moe", .bit = kQwen3Moe, .turns_halves = true, .has_experts = true},
    {.name = "smollm3", .bit = kSmolLm3, .unturned_period = 4},
    {.name = "granite", .bit = kGranite, .has_scales = true},
    {.name = "phi3", .bit = kPhi3, .turns_halves = true, .has_long_rope = true},
    {.name = "qwen35",
     .bit = kQwen35,
     .delta_bit = kQwen35Delta,
     .turns_halves = true,
     .gates_attention = true},
    {.name = "qwen35moe",
     .bit = kQwen35Moe,
     .delta_bit = kQwen35MoeDelta,
     .turns_halves = true,
     .has_experts = true,
     .has_shared_expert = true,
     .gates_attention = true},
    {.name = "qwen3next",
     .bit = kQwen3Next,
     .delta_bit = kQwen3NextDelta,
     .turns_halves = true,
     .has_experts = true,
     .has_shared_expert = true,
     .gates_attention = true,
     .keeps_value_heads = true},
    {.name = "gpt-oss",
     .bit = kGptOss,
     .turns_halves = true,
     .window_period = 2,
     .has_experts = true,
     .has_sinks = true},
};

}  // namespace

int64_t LlamaSizes::of(LlamaSize size) const {
  switch (size) {
    case LlamaSize::kOne:
    case LlamaSize::kSingle:
      return 1;
    case LlamaSize::kWidth:
      return width;
    case LlamaSize::kTwoWidths:
      return 2 * width;
    case LlamaSize::kVocab:
      return vocab_size;
    case LlamaSize::kQuery:
      return num_heads * head_size;
    case LlamaSize::kKey:
      return num_kv_heads * head_size;
    case LlamaSize::kHead:
      return head_size;
    case LlamaSize::kHeads:
      return num_heads;
    case LlamaSize::kFeedForward:
      return feed_forward;
    case LlamaSize::kQueryKeyValue:
      return (num_heads + 2 * num_kv_heads) * head_size;
    case LlamaSize::kGateUp:
      return 2 * feed_forward;
    case LlamaSize::kExperts:
      return num_experts;
    case LlamaSize::kExpertFeedForward:
      return expert_feed_forward;
    case LlamaSize::kSharedFeedForward:
      return shared_feed_forward;
    case LlamaSize::kGatedQuery:
      return 2 * num_heads * head_size;
    case LlamaSize::kDeltaMixed:
      return delta.mixed();
    case LlamaSize::kDeltaValue:
      return delta.value();
    case LlamaSize::kDeltaHeads:
      return delta.value_heads;
    case LlamaSize::kDeltaBetaAlpha:
      return 2 * delta.value_heads;
    case LlamaSize::kDeltaHead:
      return delta.head_size;
    case LlamaSize::kDeltaKernel:
      return delta.kernel;
  }
  return 0;
}

Presence LlamaTensorRow::presence(const LlamaArchitecture& architecture, bool has_delta_net) const {
  const unsigned bit = has_delta_net ? architecture.delta_bit : architecture.bit;
  if (must_have & bit) return Presence::kRequired;
  return may_have & bit ? Presence::kOptional : Presence::kNone;
}

std::span<const LlamaTensorRow> llama_tensor_rows() { return kRows; }

std::span<const LlamaModelTensor> llama_model_tensors() { return kModelTensors; }

std::span<const LlamaModelTensor> llama_mtp_tensors() { return kMtpTensors; }

std::span<const LlamaArchitecture> llama_architectures() { return kArchitectures; }

const LlamaArchitecture* find_llama_architecture(std::string_view name, bool has_experts) {
  const auto found =
      std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                   [&](const LlamaArchitecture& architecture) {
                     return architecture.name == name && architecture.has_experts == has_experts;
                   });
  return found == std::end(kArchitectures) ? nullptr : found;
}

}  // namespace nibble
