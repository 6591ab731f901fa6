#include "model/hf/delta_net_config.h"

#include <string>
#include <vector>

#include "base/error.h"
#include "model/hf/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMostOfOne = 1 << 20;  // products overflow nothing

int64_t small_count(const Json& config, const char* key) {
  const int64_t found = count_field(config, key);
  check(found <= kMostOfOne, "key '", key, "' must lie in 1 to ", kMostOfOne, ", is ", found);
  return found;
}

/// As the file lists them, or all but the last of so many in a row.
std::vector<bool> read_recurrent_layers(const Json& config, int64_t interval, int64_t num_layers) {
  std::vector<bool> layers;
  const Json* types = array_field(config, "layer_types");
  if (!types) {
    for (int64_t i = 0; i < num_layers; ++i) layers.push_back((i + 1) % interval != 0);
    return layers;
  }
  check(static_cast<int64_t>(types->size()) == num_layers, "key 'layer_types': wants ", num_layers,
        " of them, found ", types->size());
  for (const Json& type : *types) {
    const std::string kind = type.dump();
    layers.push_back(kind == R"("linear_attention")");
    check(layers.back() || kind == R"("full_attention")",
          "key 'layer_types': knows linear_attention and full_attention, found ", kind);
  }
  return layers;
}

}  // namespace

void read_delta_net_config(const Json& config, HfConfig& result) {
  DeltaNetSizes& delta = result.sizes.delta;
  delta.kernel = small_count(config, "linear_conv_kernel_dim");
  delta.head_size = small_count(config, "linear_key_head_dim");
  delta.key_heads = small_count(config, "linear_num_key_heads");
  delta.value_heads = small_count(config, "linear_num_value_heads");
  result.full_attention_interval = small_count(config, "full_attention_interval");
  delta.layers =
      read_recurrent_layers(config, result.full_attention_interval, result.sizes.num_layers);
  const int64_t value_size = small_count(config, "linear_value_head_dim");
  check(value_size == delta.head_size, "key 'linear_value_head_dim' is ", value_size,
        "; in llama.cpp values are as long as keys, ", delta.head_size);
  check(delta.value_heads % delta.key_heads == 0, "key 'linear_num_key_heads' (", delta.key_heads,
        ") must divide linear_num_value_heads (", delta.value_heads, ")");
  check(bool_field(config, "attn_output_gate").value_or(true),
        "key 'attn_output_gate': nibble has ", result.architecture->name, " with such gates only");
  check(!bool_field(config, "attention_bias").value_or(false), "key 'attention_bias': a ",
        result.architecture->name, " file has no biases");
  // The norms of the delta net's q and k, whose epsilon transformers has in its code.
  check(result.norm_epsilon == 1e-6, "key 'rms_norm_eps': ", result.norm_epsilon,
        "; llama.cpp takes it for the norms of q and k too, which have 1e-6");
  check(result.rope.type == "default", "rope type '", result.rope.type, "': nibble converts a ",
        result.architecture->name, " without scaling only");
}

}  // namespace nibble
