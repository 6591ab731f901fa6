// The keys of a model's GGUF file, each family's in the order of llama.cpp's converter.
#include <utility>
#include <vector>

#include "base/error.h"
#include "model/hf/config.h"

namespace nibble {
namespace {

/// Keys <architecture>.* by their last parts.
class Keys {
 public:
  explicit Keys(const HfConfig& config) : prefix_(concat(config.architecture->name, '.')) {}
  void set(const char* name, int64_t count) {
    metadata.set(prefix_ + name, static_cast<uint32_t>(count));
  }
  void set_number(const char* name, double value) {
    metadata.set(prefix_ + name, static_cast<float>(value));
  }
  void set_array(const char* name, GgufArray array) {
    metadata.set(prefix_ + name, std::move(array));
  }
  void set_rope(const HfRope& rope) { add_rope_metadata(rope, prefix_ + "rope.", metadata); }

  GgufMetadata metadata;

 private:
  std::string prefix_;
};

GgufMetadata phi3_metadata(const HfConfig& config, uint32_t file_type) {
  Keys keys(config);
  if (config.rope.type == "longrope")
    keys.set_number("rope.scaling.attn_factor",
                    long_rope_magnitude(config.rope, config.context_length));
  keys.set("context_length", config.context_length);
  keys.set("rope.scaling.original_context_length", config.rope.original_context);
  keys.set("embedding_length", config.sizes.width);
  keys.set("feed_forward_length", config.sizes.feed_forward);
  keys.set("block_count", config.sizes.num_layers);
  keys.set("attention.head_count", config.sizes.num_heads);
  keys.set("attention.head_count_kv", config.sizes.num_kv_heads);
  keys.set_number("attention.layer_norm_rms_epsilon", config.norm_epsilon);
  keys.set("rope.dimension_count", config.rope.dimensions);
  keys.set_number("rope.freq_base", config.rope.base);
  keys.metadata.set("general.file_type", file_type);
  keys.set("attention.sliding_window", config.window);
  return keys.metadata;
}

GgufMetadata gemma2_metadata(const HfConfig& config, uint32_t file_type) {
  Keys keys(config);
  keys.set("context_length", config.context_length);
  keys.set("embedding_length", config.sizes.width);
  keys.set("block_count", config.sizes.num_layers);
  keys.set("feed_forward_length", config.sizes.feed_forward);
  keys.set("attention.head_count", config.sizes.num_heads);
  keys.set("attention.head_count_kv", config.sizes.num_kv_heads);
  keys.set_number("attention.layer_norm_rms_epsilon", config.norm_epsilon);
  keys.set("attention.key_length", config.sizes.head_size);
  keys.set("attention.value_length", config.sizes.head_size);
  keys.metadata.set("general.file_type", file_type);
  keys.set_number("attn_logit_softcapping", config.attention_cap);
  keys.set_number("final_logit_softcapping", config.logit_cap);
  keys.set("attention.sliding_window", config.window);
  return keys.metadata;
}

void set_delta_net(const HfConfig& config, Keys& keys) {
  const DeltaNetSizes& delta = config.sizes.delta;
  if (config.mtp_layers > 0) keys.set("nextn_predict_layers", config.mtp_layers);
  std::vector<uint8_t> recurrent(delta.layers.begin(), delta.layers.end());
  for (int64_t i = 0; i < config.mtp_layers; ++i) recurrent.push_back(0);
  keys.set("ssm.conv_kernel", delta.kernel);
  keys.set("ssm.state_size", delta.head_size);
  keys.set("ssm.group_count", delta.key_heads);
  keys.set("ssm.time_step_rank", delta.value_heads);
  keys.set("ssm.inner_size", delta.value());
  keys.set_array("attention.recurrent_layers", {GgufValueType::kBool, std::move(recurrent)});
  keys.set("full_attention_interval", config.full_attention_interval);
  keys.set("rope.dimension_count", config.rope.dimensions);
  // What the configuration class takes where nothing is said.
  if (config.rope.sections.empty() && config.architecture->name.starts_with("qwen35"))
    keys.set_array("rope.dimension_sections",
                   {GgufValueType::kInt32, std::vector<int32_t>{11, 11, 10, 0}});
}

}  // namespace

GgufMetadata hf_model_metadata(const HfConfig& config, uint32_t file_type) {
  if (config.architecture->name == "phi3") return phi3_metadata(config, file_type);
  if (config.architecture->name == "gemma2") return gemma2_metadata(config, file_type);
  Keys keys(config);
  const LlamaSizes& sizes = config.sizes;
  keys.set("block_count", sizes.num_layers + config.mtp_layers);
  keys.set("context_length", config.context_length);
  keys.set("embedding_length", sizes.width);
  if (sizes.feed_forward > 0) keys.set("feed_forward_length", sizes.feed_forward);
  keys.set("attention.head_count", sizes.num_heads);
  keys.set("attention.head_count_kv", sizes.num_kv_heads);
  keys.set_rope(config.rope);
  keys.set_number("attention.layer_norm_rms_epsilon", config.norm_epsilon);
  if (sizes.num_experts > 0) {
    keys.set("expert_count", sizes.num_experts);
    keys.set("expert_used_count", sizes.experts_used);
  }
  if (config.says_head_size) {
    keys.set("attention.key_length", sizes.head_size);
    keys.set("attention.value_length", sizes.head_size);
  }
  keys.metadata.set("general.file_type", file_type);
  if (config.logit_cap > 0) keys.set_number("final_logit_softcapping", config.logit_cap);
  if (config.window > 0) keys.set("attention.sliding_window", config.window);
  if (sizes.num_experts > 0 && !config.is_llama)
    keys.set("expert_feed_forward_length", sizes.expert_feed_forward);
  if (sizes.shared_feed_forward > 0)
    keys.set("expert_shared_feed_forward_length", sizes.shared_feed_forward);
  if (config.is_llama) {
    keys.set("vocab_size", sizes.vocab_size);
    keys.set("rope.dimension_count", sizes.head_size);
  }
  if (config.architecture->has_scales) {
    keys.set_number("attention.scale", config.attention_scale);
    keys.set_number("embedding_scale", config.embedding_scale);
    keys.set_number("residual_scale", config.residual_scale);
    keys.set_number("logit_scale", config.logit_scale);
  }
  if (config.architecture->delta_bit != 0) set_delta_net(config, keys);
  return keys.metadata;
}

}  // namespace nibble
