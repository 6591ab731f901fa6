#include "model/hf/gemma_config.h"

#include "base/error.h"
#include "model/hf/json_fields.h"
#include "model/hf/window_layers.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

/// What scores are divided by the root of, which GGUF has no key for.
void check_scale(const Json& config, const HfConfig& result) {
  const LlamaSizes& sizes = result.sizes;
  const int64_t scalar = sizes.num_layers == result.architecture->layers_of_27b
                             ? sizes.width / sizes.num_heads
                             : sizes.head_size;
  const auto found = number_field(config, "query_pre_attn_scalar");
  check(found.value_or(256) == static_cast<double>(scalar),
        "key 'query_pre_attn_scalar': ", found.value_or(256), "; for ", sizes.num_layers,
        " layers, llama.cpp and nibble take ", scalar);
}

void read_caps(const Json& config, bool is_gemma2, HfConfig& result) {
  for (const auto& [key, cap] : {std::pair{"attn_logit_softcapping", &result.attention_cap},
                                 std::pair{"final_logit_softcapping", &result.logit_cap}}) {
    *cap = number_field(config, key).value_or(0);
    check(*cap > 0 || (*cap == 0 && !is_gemma2), "key '", key, "' must be positive, is ", *cap);
  }
  check(is_gemma2 || result.attention_cap == 0,
        "key 'attn_logit_softcapping': a gemma3 file has no cap of scores");
}

void read_window_rope(const Json& config, bool is_gemma2, HfRope& rope) {
  if (is_gemma2) {
    check(rope.type == "default" && rope.base == 10000,
          "a gemma2 file has a rope base of 10000 and no scaling, config.json has ", rope.base,
          " and '", rope.type, "'");
    return;
  }
  const Json* parameters = object_field(config, "rope_parameters");
  const Json* local = parameters ? object_field(*parameters, "sliding_attention") : nullptr;
  const std::string type = local ? text_field(*local, "rope_type").value_or("default") : "default";
  check(type == "default", "key 'sliding_attention': rope_type '", type,
        "': a gemma3 file scales the positions of layers without a window only");
  rope.window_base = local ? number_field(*local, "rope_theta").value_or(10000)
                           : number_field(config, "rope_local_base_freq").value_or(10000);
  check(rope.window_base > 0, "key 'rope_local_base_freq' must be positive, is ", rope.window_base);
}

}  // namespace

void read_gemma_config(const Json& config, HfConfig& result) {
  const bool is_gemma2 = result.architecture->name == "gemma2";
  check(!bool_field(config, "use_bidirectional_attention").value_or(false),
        "key 'use_bidirectional_attention': nibble attends to what came before only");
  check(!bool_field(config, "attention_bias").value_or(false), "key 'attention_bias': a ",
        result.architecture->name, " file has no biases");
  check(result.tied || !result.architecture->is_always_tied,
        "key 'tie_word_embeddings' is false: a gemma2 file has no output matrix");
  check_scale(config, result);
  read_caps(config, is_gemma2, result);
  read_window_rope(config, is_gemma2, result.rope);
  check_window_layers(config, result.architecture->window_period, result.sizes.num_layers);
  result.window = int_field(config, "sliding_window").value_or(0);
  check(result.window > 0, "key 'sliding_window' must be positive, is ", result.window);
}

}  // namespace nibble
