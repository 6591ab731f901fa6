#include "model/llama_options.h"

#include <cmath>

#include "base/error.h"
#include "model/gated_delta_net.h"

namespace nibble {
namespace {

/// A positive count that the file must give.
int64_t read_count(const GgufMetadata& metadata, const std::string& key) {
  const int64_t count = metadata.get_int(key);
  check(count > 0, "key '", key, "' must be positive, is ", count);
  return count;
}

int64_t read_vocab_size(const GgufMetadata& metadata, const std::string& key) {
  if (metadata.contains(key)) return read_count(metadata, key);
  return static_cast<int64_t>(metadata.get_strings("tokenizer.ggml.tokens").size());
}

const LlamaArchitecture& require_architecture(const std::string& name, int64_t num_experts) {
  if (const auto* found = find_llama_architecture(name, num_experts > 0)) return *found;
  if (find_llama_architecture(name, num_experts == 0))
    fail("key '", name, ".expert_count' is ", num_experts, ": nibble has ",
         num_experts > 0 ? "no mixture of experts of " : "only mixtures of experts of ", name);
  std::string known;
  for (const LlamaArchitecture& each : llama_architectures())
    if (!each.has_experts || !find_llama_architecture(each.name, false))
      known += concat(known.empty() ? "" : ", ", each.name);
  fail("unknown architecture '", name, "'; nibble has ", known);
}

/// A llama's experts are as wide as its feed-forward would be, whatever another key says; gpt-oss's
/// have no other width (sources: llama.cpp src/models/{llama,qwen3moe,qwen3next,openai-moe}.cpp).
void read_experts(const GgufMetadata& metadata, LlamaOptions& options) {
  const std::string prefix = options.shape.architecture + ".expert_";
  check(options.shape.num_experts > 1, "key '", prefix, "count': one expert is no mixture");
  options.experts_used = read_count(metadata, prefix + "used_count");
  check(options.experts_used <= options.shape.num_experts, "key '", prefix, "used_count' is ",
        options.experts_used, ", of ", options.shape.num_experts, " experts");
  check(metadata.get_int_or(prefix + "group_count", 0) <= 1, "key '", prefix,
        "group_count' is set: nibble has no groups of experts");
  options.expert_feed_forward = options.feed_forward;
  if (options.shape.architecture == "llama") return;
  const auto read_width = [&](const std::string& key, int64_t otherwise) {
    if (metadata.contains(key)) return read_count(metadata, key);
    check(otherwise > 0, "key '", key, "' is missing");
    return otherwise;
  };
  const int64_t otherwise =
      options.architecture.has_sinks ? 0 : options.feed_forward / options.experts_used;
  options.expert_feed_forward = read_width(prefix + "feed_forward_length", otherwise);
  if (options.architecture.has_shared_expert)
    options.shared_feed_forward =
        read_width(prefix + "shared_feed_forward_length", options.feed_forward);
}

/// Of the layers with a window. gemma3's are turned otherwise than the others, without scaling
/// (sources: llama.cpp src/models/gemma2.cpp, gemma3.cpp, openai-moe.cpp).
void read_window(const GgufMetadata& metadata, LlamaOptions& options) {
  const LlamaArchitecture& architecture = options.architecture;
  const int64_t period = architecture.window_period;
  if (period == 0) return;
  const bool is_gemma2 = architecture.name == "gemma2", is_gpt_oss = architecture.has_sinks;
  const std::string prefix = options.shape.architecture + '.';
  const std::string key = prefix + "attention.sliding_window", pattern = key + "_pattern";
  options.window =
      is_gpt_oss ? metadata.get_int(key) : metadata.get_int_or(key, is_gemma2 ? 4096 : 0);
  check(options.window >= 0, "key '", key, "' must not be negative, is ", options.window);
  check(metadata.get_int_or(pattern, period) == period, "key '", pattern,
        "': nibble has windows in all but each layer number ", period);
  options.window_rope.dimensions = options.rope.dimensions;
  options.window_rope.pairs = options.rope.pairs;
  if (is_gemma2 || is_gpt_oss) options.window_rope = options.rope;
  options.window_rope.base =
      metadata.get_float_or(prefix + "rope.freq_base_swa", options.window_rope.base);
}

/// The caps of gemma2's scores and of gemma's logits; a gemma3 has none unless it says so (source:
/// llama.cpp src/llama-hparams.h).
void read_caps(const GgufMetadata& metadata, LlamaOptions& options) {
  const bool is_gemma2 = options.architecture.name == "gemma2";
  const auto read = [&](const char* name, double otherwise) {
    const std::string key = concat(options.architecture.name, '.', name);
    const double cap = metadata.get_float_or(key, otherwise);
    check(cap > 0 || (cap == 0 && otherwise == 0), "key '", key, "' must be positive, is ", cap);
    return cap;
  };
  if (is_gemma2) options.attention_cap = read("attn_logit_softcapping", 50);
  options.shape.logit_cap = read("final_logit_softcapping", is_gemma2 ? 30 : 0);
}

/// Of which 0 means that there is none (source: llama.cpp src/models/granite.cpp).
void read_scales(const GgufMetadata& metadata, LlamaOptions& options) {
  const auto read = [&](const char* name, double& scale) {
    const std::string key = concat(options.architecture.name, '.', name);
    const double found = metadata.get_float_or(key, 0);
    check(found >= 0, "key '", key, "' must not be negative, is ", found);
    if (found > 0) scale = found;
  };
  read("embedding_scale", options.embedding_scale);
  read("residual_scale", options.residual_scale);
  read("attention.scale", options.attention_scale);
  double of_logits = 1;
  read("logit_scale", of_logits);
  options.output_scale = 1 / of_logits;
}

void read_delta_net(const GgufMetadata& metadata, LlamaOptions& options) {
  const std::string& architecture = options.shape.architecture;
  int64_t& layers = options.shape.num_layers;
  options.delta = read_delta_net_sizes(metadata, architecture, layers);
  const std::string key = architecture + ".nextn_predict_layers";
  options.mtp_layers = metadata.get_int_or(key, 0);
  check(options.mtp_layers >= 0 && options.mtp_layers < layers, "key '", key, "' is ",
        options.mtp_layers, ", of ", layers, " layers");
  layers -= options.mtp_layers;
  options.delta.layers.resize(static_cast<size_t>(layers));
  options.delta.shares_neighbours = options.architecture.keeps_value_heads;
}

double attention_scale(const LlamaOptions& options) {
  const int64_t layers = options.architecture.layers_of_27b;
  const int64_t size = layers > 0 && options.shape.num_layers == layers
                           ? options.shape.width / options.num_heads
                           : options.head_size;
  return 1 / std::sqrt(static_cast<double>(size));
}

}  // namespace

LlamaOptions read_llama_options(const GgufFile& file) {
  return with_frame(file.path(), [&] {
    const GgufMetadata& metadata = file.metadata();
    LlamaOptions options;
    options.shape.architecture = metadata.get_string("general.architecture");
    const auto key = [&](const char* name) {
      return concat(options.shape.architecture, '.', name);
    };
    options.shape.num_experts = metadata.get_int_or(key("expert_count"), 0);
    check(options.shape.num_experts >= 0, "key '", key("expert_count"), "' is negative");
    const LlamaArchitecture& architecture =
        require_architecture(options.shape.architecture, options.shape.num_experts);
    options.architecture = architecture;
    options.shape.num_layers = read_count(metadata, key("block_count"));
    options.shape.width = read_count(metadata, key("embedding_length"));
    options.shape.context_length = read_count(metadata, key("context_length"));
    options.shape.vocab_size = read_vocab_size(metadata, key("vocab_size"));
    // qwen35moe's files do not say how wide the feed-forward is that they do not have.
    const bool has_none =
        architecture.has_shared_expert && !metadata.contains(key("feed_forward_length"));
    options.feed_forward = has_none ? 0 : read_count(metadata, key("feed_forward_length"));
    options.num_heads = read_count(metadata, key("attention.head_count"));
    options.num_kv_heads = metadata.get_int_or(key("attention.head_count_kv"), options.num_heads);
    options.norm_epsilon = metadata.get_float(key("attention.layer_norm_rms_epsilon"));
    if (architecture.has_experts) read_experts(metadata, options);
    check(options.num_kv_heads > 0 && options.num_heads % options.num_kv_heads == 0, "key '",
          key("attention.head_count_kv"), "' (", options.num_kv_heads, ") must divide ",
          key("attention.head_count"), " (", options.num_heads, ")");
    options.head_size =
        metadata.get_int_or(key("attention.key_length"), options.shape.width / options.num_heads);
    const int64_t value_size =
        metadata.get_int_or(key("attention.value_length"), options.head_size);
    check(options.head_size > 0 && value_size == options.head_size,
          "heads' keys and values must be equally long, are ", options.head_size, " and ",
          value_size);
    options.rope = read_rope_options(metadata, options.shape.architecture, options.head_size);
    options.rope.pairs = architecture.turns_halves ? RopePairs::kHalves : RopePairs::kNeighbours;
    check(architecture.has_long_rope ||
              metadata.get_string_or(key("rope.scaling.type"), "") != "longrope",
          "key '", key("rope.scaling.type"), "' is 'longrope', which nibble has for phi3 only");
    const bool turns_parts = architecture.has_long_rope || architecture.gates_attention;
    const bool fits = turns_parts ? options.rope.dimensions <= options.head_size
                                  : options.rope.dimensions == options.head_size;
    check(fits, "key '", key("rope.dimension_count"), "' is ", options.rope.dimensions,
          ", a head has ", options.head_size);
    read_window(metadata, options);
    if (architecture.delta_bit != 0) read_delta_net(metadata, options);
    if (architecture.is_gemma) read_caps(metadata, options);
    options.attention_scale = attention_scale(options);
    if (architecture.is_gemma)
      options.embedding_scale = std::sqrt(static_cast<double>(options.shape.width));
    if (architecture.has_scales) read_scales(metadata, options);
    return options;
  });
}

GgufMetadata llama_metadata(const LlamaOptions& options) {
  GgufMetadata metadata;
  const std::string& architecture = options.shape.architecture;
  metadata.set("general.architecture", architecture);
  const auto set = [&](const char* name, int64_t count) {
    metadata.set(concat(architecture, '.', name), static_cast<uint32_t>(count));
  };
  set("block_count", options.shape.num_layers);
  set("context_length", options.shape.context_length);
  set("embedding_length", options.shape.width);
  set("vocab_size", options.shape.vocab_size);
  set("feed_forward_length", options.feed_forward);
  set("attention.head_count", options.num_heads);
  set("attention.head_count_kv", options.num_kv_heads);
  set("rope.dimension_count", options.rope.dimensions);
  metadata.set(architecture + ".attention.layer_norm_rms_epsilon",
               static_cast<float>(options.norm_epsilon));
  metadata.set(architecture + ".rope.freq_base", static_cast<float>(options.rope.base));
  return metadata;
}

}  // namespace nibble
