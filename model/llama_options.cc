#include "model/llama_options.h"

#include "base/error.h"

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

const LlamaArchitecture& require_architecture(const std::string& name) {
  if (const LlamaArchitecture* found = find_llama_architecture(name)) return *found;
  std::string known;
  for (const LlamaArchitecture& each : llama_architectures())
    known += concat(known.empty() ? "" : ", ", each.name);
  fail("unknown architecture '", name, "'; nibble has ", known);
}

/// Of the layers with a window, whose rotation is not scaled (source: llama.cpp
/// src/models/gemma3.cpp).
void read_window(const GgufMetadata& metadata, LlamaOptions& options) {
  const std::string& architecture = options.shape.architecture;
  const std::string key = architecture + ".attention.sliding_window";
  if (options.architecture.window_period == 0 || !metadata.contains(key)) return;
  options.window = metadata.get_int(key);
  check(options.window >= 0, "key '", key, "' must not be negative, is ", options.window);
  const std::string pattern = key + "_pattern";
  check(metadata.get_int_or(pattern, options.architecture.window_period) ==
            options.architecture.window_period,
        "key '", pattern, "': nibble has windows in all but each layer number ",
        options.architecture.window_period);
  options.window_rope.dimensions = options.rope.dimensions;
  options.window_rope.pairs = options.rope.pairs;
  options.window_rope.base = metadata.get_float_or(architecture + ".rope.freq_base_swa", 10000.0);
}

/// gemma3's settings that no layer here has.
void check_gemma(const GgufMetadata& metadata, const LlamaOptions& options) {
  const std::string softcap = options.shape.architecture + ".final_logit_softcapping";
  check(metadata.get_float_or(softcap, 0) == 0, "key '", softcap,
        "' is set: nibble caps no logits");
  // llama.cpp takes another attention scale for that many layers.
  check(options.shape.num_layers != 62,
        "a gemma3 of 62 layers (27B) scales its attention otherwise");
}

}  // namespace

LlamaOptions read_llama_options(const GgufFile& file) {
  return with_frame(file.path(), [&] {
    const GgufMetadata& metadata = file.metadata();
    LlamaOptions options;
    options.shape.architecture = metadata.get_string("general.architecture");
    const LlamaArchitecture& architecture = require_architecture(options.shape.architecture);
    options.architecture = architecture;
    const auto key = [&](const char* name) {
      return concat(options.shape.architecture, '.', name);
    };
    options.shape.num_layers = read_count(metadata, key("block_count"));
    options.shape.width = read_count(metadata, key("embedding_length"));
    options.shape.context_length = read_count(metadata, key("context_length"));
    options.shape.vocab_size = read_vocab_size(metadata, key("vocab_size"));
    options.feed_forward = read_count(metadata, key("feed_forward_length"));
    options.num_heads = read_count(metadata, key("attention.head_count"));
    options.num_kv_heads = metadata.get_int_or(key("attention.head_count_kv"), options.num_heads);
    options.norm_epsilon = metadata.get_float(key("attention.layer_norm_rms_epsilon"));
    check(metadata.get_int_or(key("expert_count"), 0) == 0, "key '", key("expert_count"),
          "' is set: nibble has no mixture of experts");
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
    const bool fits = architecture.has_long_rope ? options.rope.dimensions <= options.head_size
                                                 : options.rope.dimensions == options.head_size;
    check(fits, "key '", key("rope.dimension_count"), "' is ", options.rope.dimensions,
          ", a head has ", options.head_size);
    read_window(metadata, options);
    if (architecture.is_gemma) check_gemma(metadata, options);
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
