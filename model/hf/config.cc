#include "model/hf/config.h"

#include "base/error.h"
#include "base/log.h"
#include "model/hf/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

struct Family {
  const char *name, *architecture;
  bool is_llama;                // as in HfConfig
  bool says_head_size;          // whether its configuration class always has a head_dim
  bool needs_head_size;         // whether a missing one is not hidden_size / num_attention_heads
  bool attention_biases;        // always; else as "attention_bias" says
  const char* defaults = "{}";  // of keys that published configurations leave out
};
constexpr Family kFamilies[] = {
    {"LlamaForCausalLM", "llama", true, true, false, false},
    {"MistralForCausalLM", "llama", true, true, false, false},
    {"Qwen2ForCausalLM", "qwen2", false, false, false, true},
    {"Qwen3ForCausalLM", "qwen3", false, true, true, false},
    {"Gemma3ForCausalLM", "gemma3", false, true, true, false, R"({"tie_word_embeddings": true})"},
    {"SmolLM3ForCausalLM", "smollm3", true, false, false, false,
     R"({"tie_word_embeddings": true, "rope_theta": 2000000.0, "no_rope_layer_interval": 4})"},
    {"Phi3ForCausalLM", "phi3", false, false, false, false,
     R"({"num_key_value_heads": null, "original_max_position_embeddings": 4096})"},
};

bool is_gemma(const Family& family) { return std::string(family.architecture) == "gemma3"; }

const Family& read_family(const Json& config) {
  const Json* names = array_field(config, "architectures");
  check(names && !names->empty() && names->front().is_string(), "key 'architectures': names none");
  const auto name = names->front().get<std::string>();
  for (const Family& family : kFamilies)
    if (name == family.name) return family;
  fail("architecture '", name, "' cannot be converted yet; nibble has ", hf_family_names());
}

/// What transformers' configuration class fills in.
Json with_defaults(Json config, const Family& family) {
  const Json defaults = Json::parse(family.defaults);
  for (const auto& [key, value] : defaults.items())
    if (!config.contains(key)) config[key] = value;
  return config;
}

/// Settings under which the file would compute something else than the model does.
void refuse_unknown(const Json& config, const Family& family) {
  if (const Json* quantized = object_field(config, "quantization_config"))
    fail("the model is quantized already (",
         text_field(*quantized, "quant_method").value_or("by an unnamed method"),
         "); nibble converts unquantized checkpoints");
  const char* key = is_gemma(family) ? "hidden_activation" : "hidden_act";
  const std::string wanted = is_gemma(family) ? "gelu_pytorch_tanh" : "silu";
  const std::string activation = text_field(config, key).value_or(wanted);
  check(activation == wanted, "key '", key, "': '", activation, "'; nibble has ", wanted, " here");
}

/// GGUF's files of these architectures attend to the whole context, in llama.cpp as in nibble.
void note_sliding_window(const Json& config, const Family& family, int64_t context_length) {
  const auto window = int_field(config, "sliding_window");
  const bool used = std::string(family.name) == "MistralForCausalLM" ||
                    std::string(family.name) == "Phi3ForCausalLM" ||
                    bool_field(config, "use_sliding_window").value_or(false);
  if (used && window && *window < context_length)
    note("sliding_window ", *window, " is left out, as llama.cpp does: equal up to ", *window,
         " tokens, beyond them every token is attended to");
}

/// Which of gemma3's layers have a window, as its file says it: all but each sixth, or none.
void check_layer_types(const Json& config, int64_t num_layers) {
  constexpr int64_t kPeriod = 6;
  for (const char* key : {"sliding_window_pattern", "_sliding_window_pattern"})
    check(int_field(config, key).value_or(kPeriod) == kPeriod, "key '", key,
          "': ", int_field(config, key).value_or(0),
          "; nibble has windows in all but each sixth layer");
  const Json* types = array_field(config, "layer_types");
  if (!types) return;
  check(static_cast<int64_t>(types->size()) >= num_layers, "key 'layer_types': wants ", num_layers,
        " of them, found ", types->size());
  for (int64_t i = 0; i < num_layers; ++i)
    check((*types)[static_cast<size_t>(i)] ==
              (i % kPeriod < kPeriod - 1 ? "sliding_attention" : "full_attention"),
          "key 'layer_types': layer ", i, " is another than all but each sixth with a window");
}

/// What of gemma3 neither GGUF nor nibble has a key or a layer for.
void read_gemma(const Json& config, HfConfig& result) {
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"})
    check(!find_field(config, key), "key '", key, "': nibble caps no logits");
  check(!bool_field(config, "use_bidirectional_attention").value_or(false),
        "key 'use_bidirectional_attention': nibble attends to what came before only");
  check(!bool_field(config, "attention_bias").value_or(false),
        "key 'attention_bias': a gemma3 file has no biases");
  const auto scale = number_field(config, "query_pre_attn_scalar");
  check(scale.value_or(256) == static_cast<double>(result.sizes.head_size),
        "key 'query_pre_attn_scalar': ", scale.value_or(256),
        "; nibble scales attention by the head size, ", result.sizes.head_size);
  const Json* rope = object_field(config, "rope_parameters");
  const Json* local = rope ? object_field(*rope, "sliding_attention") : nullptr;
  result.rope.window_base = local ? number_field(*local, "rope_theta").value_or(10000)
                                  : number_field(config, "rope_local_base_freq").value_or(10000);
  check(result.rope.window_base > 0, "key 'rope_local_base_freq' must be positive, is ",
        result.rope.window_base);
  check_layer_types(config, result.sizes.num_layers);
  result.window = int_field(config, "sliding_window").value_or(0);
  check(result.window > 0, "key 'sliding_window' must be positive, is ", result.window);
}

/// Which of smollm3's layers turn no heads: llama.cpp, and nibble, have each fourth.
void check_unturned_layers(const Json& config, const HfConfig& result) {
  const int64_t period = result.architecture->unturned_period;
  const Json* turned = array_field(config, "no_rope_layers");
  if (!turned) {
    const int64_t interval = count_field(config, "no_rope_layer_interval");
    check(interval == period, "key 'no_rope_layer_interval': ", interval, "; nibble has ", period);
    return;
  }
  const int64_t num_layers = result.sizes.num_layers;
  check(static_cast<int64_t>(turned->size()) >= num_layers, "key 'no_rope_layers': wants ",
        num_layers, " of them, found ", turned->size());
  for (int64_t i = 0; i < num_layers; ++i)
    check((*turned)[static_cast<size_t>(i)] == (i % period < period - 1 ? 1 : 0),
          "key 'no_rope_layers': layer ", i, " is another than each layer number ", period,
          " without rotary positions");
}

/// llama.cpp reads the window and does not have it.
void read_phi(const Json& config, HfConfig& result) {
  const LlamaSizes& sizes = result.sizes;
  check(sizes.num_heads * sizes.head_size == sizes.width, "key 'head_dim': ", sizes.head_size, "; ",
        sizes.num_heads, " heads of a phi3 are its width, ", sizes.width);
  result.window = int_field(config, "sliding_window").value_or(0);
  check(result.window >= 0, "key 'sliding_window' must not be negative, is ", result.window);
}

LlamaSizes read_sizes(const Json& config, const Family& family) {
  LlamaSizes sizes;
  sizes.num_layers = count_field(config, "num_hidden_layers");
  sizes.width = count_field(config, "hidden_size");
  sizes.feed_forward = count_field(config, "intermediate_size");
  sizes.vocab_size = count_field(config, "vocab_size");
  sizes.num_heads = count_field(config, "num_attention_heads");
  // Configurations older than grouped queries lack the key; of llama only, as others have a default
  // of their own.
  const bool given = config.contains("num_key_value_heads");
  check(given || std::string(family.architecture) == "llama", "has no 'num_key_value_heads'");
  sizes.num_kv_heads = find_field(config, "num_key_value_heads")
                           ? count_field(config, "num_key_value_heads")
                           : sizes.num_heads;
  check(sizes.num_heads % sizes.num_kv_heads == 0, "key 'num_key_value_heads' (",
        sizes.num_kv_heads, ") must divide num_attention_heads (", sizes.num_heads, ")");
  if (family.needs_head_size || find_field(config, "head_dim")) {
    sizes.head_size = count_field(config, "head_dim");
  } else {
    check(sizes.width % sizes.num_heads == 0, "key 'num_attention_heads' (", sizes.num_heads,
          ") must divide hidden_size (", sizes.width, ")");
    sizes.head_size = sizes.width / sizes.num_heads;
  }
  check(sizes.head_size % 2 == 0, "a head of ", sizes.head_size, " elements has no pairs to turn");
  return sizes;
}

/// In an order of its own, with keys that other architectures do not have.
GgufMetadata phi3_metadata(const HfConfig& config, uint32_t file_type) {
  GgufMetadata metadata;
  const auto set = [&](const char* name, int64_t count) {
    metadata.set(concat("phi3.", name), static_cast<uint32_t>(count));
  };
  const auto set_float = [&](const char* name, double value) {
    metadata.set(concat("phi3.", name), static_cast<float>(value));
  };
  if (config.rope.type == "longrope")
    set_float("rope.scaling.attn_factor", long_rope_magnitude(config.rope, config.context_length));
  set("context_length", config.context_length);
  set("rope.scaling.original_context_length", config.rope.original_context);
  set("embedding_length", config.sizes.width);
  set("feed_forward_length", config.sizes.feed_forward);
  set("block_count", config.sizes.num_layers);
  set("attention.head_count", config.sizes.num_heads);
  set("attention.head_count_kv", config.sizes.num_kv_heads);
  set_float("attention.layer_norm_rms_epsilon", config.norm_epsilon);
  set("rope.dimension_count", config.rope.dimensions);
  set_float("rope.freq_base", config.rope.base);
  metadata.set("general.file_type", file_type);
  set("attention.sliding_window", config.window);
  return metadata;
}

}  // namespace

std::string hf_family_names() {
  std::string names;
  for (const Family& family : kFamilies) names += concat(names.empty() ? "" : ", ", family.name);
  return names;
}

HfConfig read_hf_config(const Json& given) {
  const Family& family = read_family(given);
  const Json config = with_defaults(given, family);
  refuse_unknown(config, family);
  HfConfig result;
  result.family = family.name;
  result.architecture = find_llama_architecture(family.architecture);
  result.sizes = read_sizes(config, family);
  result.context_length = count_field(config, "max_position_embeddings");
  result.norm_epsilon = number_field(config, "rms_norm_eps").value_or(1e-6);
  result.is_llama = family.is_llama;
  result.says_head_size = family.says_head_size || find_field(config, "head_dim");
  result.tied = bool_field(config, "tie_word_embeddings").value_or(false);
  result.attention_biases =
      family.attention_biases || bool_field(config, "attention_bias").value_or(false);
  result.feed_forward_biases = bool_field(config, "mlp_bias").value_or(false);
  result.rope =
      read_hf_rope(config, *result.architecture, result.context_length, result.sizes.head_size);
  if (result.architecture->unturned_period > 0) check_unturned_layers(config, result);
  if (is_gemma(family))
    read_gemma(config, result);
  else if (result.architecture->name == "phi3")
    read_phi(config, result);
  if (!is_gemma(family)) note_sliding_window(config, family, result.context_length);
  return result;
}

GgufMetadata hf_model_metadata(const HfConfig& config, uint32_t file_type) {
  if (config.architecture->name == "phi3") return phi3_metadata(config, file_type);
  GgufMetadata metadata;
  const LlamaSizes& sizes = config.sizes;
  const std::string prefix = concat(config.architecture->name, '.');
  const auto set = [&](const char* name, int64_t count) {
    metadata.set(prefix + name, static_cast<uint32_t>(count));
  };
  set("block_count", sizes.num_layers);
  set("context_length", config.context_length);
  set("embedding_length", sizes.width);
  set("feed_forward_length", sizes.feed_forward);
  set("attention.head_count", sizes.num_heads);
  set("attention.head_count_kv", sizes.num_kv_heads);
  add_rope_metadata(config.rope, prefix + "rope.", metadata);
  metadata.set(prefix + "attention.layer_norm_rms_epsilon",
               static_cast<float>(config.norm_epsilon));
  if (config.says_head_size) {
    set("attention.key_length", sizes.head_size);
    set("attention.value_length", sizes.head_size);
  }
  metadata.set("general.file_type", file_type);
  if (config.window > 0) set("attention.sliding_window", config.window);
  if (config.is_llama) {
    set("vocab_size", sizes.vocab_size);
    set("rope.dimension_count", sizes.head_size);
  }
  return metadata;
}

}  // namespace nibble
