#include "model/hf/rope_config.h"

#include <cmath>
#include <numbers>

#include "base/error.h"
#include "model/hf/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

void read_yarn(const Json& parameters, HfRope& rope) {
  for (const char* key : {"attention_factor", "attn_factor", "extrapolation_factor", "mscale",
                          "mscale_all_dim", "truncate"})
    check(!find_field(parameters, key), "rope scaling 'yarn': key '", key,
          "' cannot be said in a GGUF file");
  rope.beta_fast = number_field(parameters, "beta_fast");
  rope.beta_slow = number_field(parameters, "beta_slow");
  check(rope.beta_fast.value_or(32) == 32 && rope.beta_slow.value_or(1) == 1,
        "rope scaling 'yarn': llama.cpp takes a beta_fast of 32 and a beta_slow of 1, found ",
        rope.beta_fast.value_or(32), " and ", rope.beta_slow.value_or(1));
}

}  // namespace

HfRope read_hf_rope(const Json& config, int64_t context_length) {
  const Json nothing = Json::object();
  // transformers 5 reads rope_scaling too, and then prefers it.
  const Json* given = object_field(config, "rope_scaling");
  if (!given || given->empty()) given = object_field(config, "rope_parameters");
  // Of layers with and without a window, those without.
  if (const Json* full = given ? object_field(*given, "full_attention") : nullptr) given = full;
  const Json& parameters = given ? *given : nothing;
  HfRope rope;
  rope.base = number_field(parameters, "rope_theta")
                  .value_or(number_field(config, "rope_theta").value_or(rope.base));
  rope.type = text_field(parameters, "rope_type")
                  .value_or(text_field(parameters, "type").value_or(rope.type));
  check(rope.base > 0, "key 'rope_theta' must be positive, is ", rope.base);
  check(number_field(parameters, "partial_rotary_factor").value_or(1.0) == 1.0,
        "key 'partial_rotary_factor': nibble turns whole heads only");
  if (rope.type == "default") return rope;
  check(rope.type == "linear" || rope.type == "yarn" || rope.type == "llama3", "rope type '",
        rope.type, "' cannot be converted; nibble has default, linear, yarn and llama3");
  const auto factor = number_field(parameters, "factor");
  check(factor && *factor > 0, "rope type '", rope.type, "': wants a positive 'factor'");
  rope.factor = *factor;
  rope.original_context =
      int_field(parameters, "original_max_position_embeddings").value_or(context_length);
  check(rope.original_context > 0, "key 'original_max_position_embeddings' must be positive, is ",
        rope.original_context);
  if (rope.type == "yarn") read_yarn(parameters, rope);
  if (rope.type != "llama3") return rope;
  const auto low = number_field(parameters, "low_freq_factor"),
             high = number_field(parameters, "high_freq_factor");
  check(low && high && *low > 0 && *high > *low,
        "rope type 'llama3': wants a 'low_freq_factor' above 0 and a larger 'high_freq_factor'");
  rope.low_frequency_factor = *low;
  rope.high_frequency_factor = *high;
  return rope;
}

void add_rope_metadata(const HfRope& rope, const std::string& prefix, GgufMetadata& metadata) {
  const auto set = [&](const char* name, double value) {
    metadata.set(prefix + name, static_cast<float>(value));
  };
  if (rope.type == "linear" || rope.type == "yarn") {
    metadata.set(prefix + "scaling.type", rope.type);
    set("scaling.factor", rope.factor);
  }
  if (rope.type == "yarn") {
    metadata.set(prefix + "scaling.original_context_length",
                 static_cast<uint32_t>(rope.original_context));
    if (rope.beta_fast) set("scaling.yarn_beta_fast", *rope.beta_fast);
    if (rope.beta_slow) set("scaling.yarn_beta_slow", *rope.beta_slow);
  }
  set("freq_base", rope.base);
  if (rope.window_base > 0) set("freq_base_swa", rope.window_base);
}

std::vector<float> llama3_rope_divisors(const HfRope& rope, int64_t head_size) {
  if (rope.type != "llama3") return {};
  const auto low = static_cast<float>(rope.low_frequency_factor);
  const auto range = static_cast<float>(rope.high_frequency_factor - rope.low_frequency_factor);
  const auto context = static_cast<float>(rope.original_context);
  const auto factor = static_cast<float>(rope.factor), base = static_cast<float>(rope.base);
  const auto longest = static_cast<float>(rope.original_context / rope.low_frequency_factor);
  const auto shortest = static_cast<float>(rope.original_context / rope.high_frequency_factor);
  constexpr auto kTurn = static_cast<float>(2 * std::numbers::pi);
  std::vector<float> divisors;
  for (int64_t i = 0; i < head_size; i += 2) {
    // A number over a tensor is the tensor's reciprocal times the number there, so it is here.
    const float frequency =
        1.0f / std::pow(base, static_cast<float>(i) / static_cast<float>(head_size));
    const float wavelength = 1.0f / frequency * kTurn;
    if (wavelength < shortest) {
      divisors.push_back(1.0f);
    } else if (wavelength > longest) {
      divisors.push_back(factor);
    } else {
      const float smooth = (1.0f / wavelength * context - low) / range;
      divisors.push_back(1.0f / ((1.0f - smooth) / factor + smooth));
    }
  }
  return divisors;
}

}  // namespace nibble
