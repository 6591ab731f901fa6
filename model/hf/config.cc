#include "model/hf/config.h"

#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "model/hf/delta_net_config.h"
#include "model/hf/experts_config.h"
#include "model/hf/gemma_config.h"
#include "model/hf/json_fields.h"
#include "model/hf/window_layers.h"

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
  bool has_experts = false;
};
constexpr const char* kGemma3Defaults =
    R"({"tie_word_embeddings": true, "rope_theta": 1000000.0, "vocab_size": 262208,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131072, "sliding_window": 4096})";
constexpr const char* kQwen3NextDefaults =
    R"({"partial_rotary_factor": 0.25, "full_attention_interval": 4, "norm_topk_prob": true})";
constexpr const char* kGptOssDefaults =
    R"({"sliding_window": 128, "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "head_dim": 64,
        "num_local_experts": 128, "num_experts_per_tok": 4})";
/// llama.cpp's LLAMA_MAX_LAYERS.
constexpr int64_t kMaxLayers = 512;

constexpr Family kFamilies[] = {
    {"LlamaForCausalLM", "llama", true, true, false, false},
    {"MistralForCausalLM", "llama", true, true, false, false},
    {"MixtralForCausalLM", "llama", true, false, false, false,
     R"({"rope_theta": 1000000.0, "rms_norm_eps": 1e-5})", true},
    {"Qwen2ForCausalLM", "qwen2", false, false, false, true},
    {"Qwen3ForCausalLM", "qwen3", false, true, true, false},
    {"Qwen3MoeForCausalLM", "qwen3moe", false, false, false, false, "{}", true},
    {"Gemma2ForCausalLM", "gemma2", false, true, true, false,
     R"({"tie_word_embeddings": true, "num_key_value_heads": 4, "sliding_window": 4096,
         "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0})"},
    {"Gemma3ForCausalLM", "gemma3", false, true, true, false, kGemma3Defaults},
    {"Gemma3ForConditionalGeneration", "gemma3", false, true, true, false, kGemma3Defaults},
    {"SmolLM3ForCausalLM", "smollm3", true, false, false, false,
     R"({"tie_word_embeddings": true, "rope_theta": 2000000.0, "no_rope_layer_interval": 4})"},
    {"GraniteForCausalLM", "granite", true, false, false, false,
     R"({"num_key_value_heads": null})"},
    {"Phi3ForCausalLM", "phi3", false, false, false, false,
     R"({"num_key_value_heads": null, "original_max_position_embeddings": 4096,
         "rms_norm_eps": 1e-5})"},
    {"Qwen3_5ForCausalLM", "qwen35", false, true, true, false, kQwen3NextDefaults},
    {"Qwen3_5ForConditionalGeneration", "qwen35", false, true, true, false, kQwen3NextDefaults},
    {"Qwen3_5MoeForCausalLM", "qwen35moe", false, true, true, false, kQwen3NextDefaults, true},
    {"Qwen3_5MoeForConditionalGeneration", "qwen35moe", false, true, true, false,
     kQwen3NextDefaults, true},
    {"Qwen3NextForCausalLM", "qwen3next", false, true, true, false, kQwen3NextDefaults, true},
    {"GptOssForCausalLM", "gpt-oss", false, true, true, true, kGptOssDefaults, true},
};

bool is_gemma(const Family& family) {
  return find_llama_architecture(family.architecture, family.has_experts)->is_gemma;
}

const Family& read_family(const Json& config) {
  const Json* names = array_field(config, "architectures");
  check(names && !names->empty() && names->front().is_string(), "key 'architectures': names none");
  const auto name = names->front().get<std::string>();
  for (const Family& family : kFamilies)
    if (name == family.name) return family;
  fail("architecture '", name, "' cannot be converted yet; nibble has ", hf_family_names());
}

/// Of a model that sees or hears too, the part that is a language model.
Json text_part(const Json& config) {
  const Json* text = object_field(config, "text_config");
  if (!text) return config;
  Json part = *text;
  for (const char* key : {"architectures", "quantization_config", "tie_word_embeddings"})
    if (config.contains(key)) part[key] = config[key];
  return part;
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
  const char* key = is_gemma(family) ? "hidden_activation" : "hidden_act";
  const std::string wanted = is_gemma(family) ? "gelu_pytorch_tanh" : "silu";
  const std::string activation = text_field(config, key).value_or(wanted);
  check(activation == wanted, "key '", key, "': '", activation, "'; nibble has ", wanted, " here");
}

/// GGUF's files of these architectures attend to the whole context, in llama.cpp as in nibble.
void note_sliding_window(const Json& config, const Family& family, int64_t context_length) {
  const auto window = int_field(config, "sliding_window");
  const std::string name = family.name;
  const bool used = name == "MistralForCausalLM" || name == "MixtralForCausalLM" ||
                    name == "Phi3ForCausalLM" ||
                    bool_field(config, "use_sliding_window").value_or(false);
  if (used && window && *window < context_length)
    note("sliding_window ", *window, " is left out, as llama.cpp does: equal up to ", *window,
         " tokens, beyond them every token is attended to");
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

/// Of architectures whose files have no key for a head's length.
void check_head_size(const HfConfig& result) {
  const LlamaSizes& sizes = result.sizes;
  check(sizes.num_heads * sizes.head_size == sizes.width, "key 'head_dim': ", sizes.head_size, "; ",
        sizes.num_heads, " heads of a ", result.architecture->name, " are its width, ",
        sizes.width);
}

void read_granite(const Json& config, HfConfig& result) {
  check_head_size(result);
  for (const auto& [key, scale] : {std::pair{"attention_multiplier", &result.attention_scale},
                                   std::pair{"embedding_multiplier", &result.embedding_scale},
                                   std::pair{"residual_multiplier", &result.residual_scale},
                                   std::pair{"logits_scaling", &result.logit_scale}}) {
    *scale = number_field(config, key).value_or(1);
    check(*scale > 0, "key '", key, "' must be positive, is ", *scale);
  }
}

/// llama.cpp reads the window and does not have it.
void read_phi(const Json& config, HfConfig& result) {
  check_head_size(result);
  result.window = int_field(config, "sliding_window").value_or(0);
  check(result.window >= 0, "key 'sliding_window' must not be negative, is ", result.window);
}

/// llama.cpp's files of it cannot be without biases, and have windows in each second layer.
void read_gpt_oss(const Json& config, HfConfig& result) {
  check(bool_field(config, "attention_bias").value_or(true),
        "key 'attention_bias' is false: a gpt-oss file has biases");
  check(find_field(config, "rope_scaling") || find_field(config, "rope_parameters"),
        "has no 'rope_scaling' and no 'rope_parameters'");
  check_window_layers(config, result.architecture->window_period, result.sizes.num_layers);
  result.window = count_field(config, "sliding_window");
}

LlamaSizes read_sizes(const Json& config, const Family& family,
                      const LlamaArchitecture& architecture) {
  LlamaSizes sizes;
  sizes.num_layers = count_field(config, "num_hidden_layers");
  check(sizes.num_layers <= kMaxLayers, "key 'num_hidden_layers': llama.cpp takes ", kMaxLayers,
        " at most, is ", sizes.num_layers);
  sizes.width = count_field(config, "hidden_size");
  // Not said of a Qwen3.5 that has experts in all layers.
  if (!architecture.has_shared_expert || find_field(config, "intermediate_size"))
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
  if (family.has_experts) read_experts_config(config, architecture, sizes);
  check(sizes.head_size % 2 == 0, "a head of ", sizes.head_size, " elements has no pairs to turn");
  return sizes;
}

constexpr std::string_view kModel = "model.", kOuter = "language_model.",
                           kInner = "model.language_model.";

}  // namespace

std::string hf_family_names() {
  std::string names;
  for (const Family& family : kFamilies) names += concat(names.empty() ? "" : ", ", family.name);
  return names;
}

std::string text_tensor_name(const std::string& name) {
  // The parts' names before transformers 4.52, and since.
  for (const char* part : {"vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                           "model.multi_modal_projector.", "model.visual."})
    if (name.starts_with(part)) return "";
  if (name.starts_with(kOuter)) return name.substr(kOuter.size());
  if (name.starts_with(kInner)) return concat(kModel, name.substr(kInner.size()));
  return name;
}

std::string outer_tensor_name(const std::string& text_name, bool inner) {
  if (!inner) return concat(kOuter, text_name);
  return text_name.starts_with(kModel) ? concat(kInner, text_name.substr(kModel.size()))
                                       : text_name;
}

HfConfig read_hf_config(const Json& given) {
  const Family& family = read_family(given);
  const Json config = with_defaults(text_part(given), family);
  refuse_unknown(config, family);
  HfConfig result;
  result.family = family.name;
  result.architecture = find_llama_architecture(family.architecture, family.has_experts);
  result.sizes = read_sizes(config, family, *result.architecture);
  result.context_length = count_field(config, "max_position_embeddings");
  result.norm_epsilon = number_field(config, "rms_norm_eps").value_or(1e-6);
  check(result.norm_epsilon > 0, "key 'rms_norm_eps' must be positive, is ", result.norm_epsilon);
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
    read_gemma_config(config, result);
  else if (result.architecture->name == "phi3")
    read_phi(config, result);
  else if (result.architecture->has_scales)
    read_granite(config, result);
  else if (result.architecture->delta_bit != 0)
    read_delta_net_config(config, result);
  else if (result.architecture->has_sinks)
    read_gpt_oss(config, result);
  if (!is_gemma(family)) note_sliding_window(config, family, result.context_length);
  return result;
}

}  // namespace nibble
