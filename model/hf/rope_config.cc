#include "model/hf/rope_config.h"

#include <cmath>
#include <numbers>

#include "base/error.h"
#include "base/log.h"
#include "model/hf/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

void read_yarn(const Json& parameters, const LlamaArchitecture& architecture, HfRope& rope) {
  // All files of gpt-oss are as llama.cpp computes them, and no checkpoint is.
  if (!bool_field(parameters, "truncate").value_or(true)) {
    check(architecture.has_sinks,
          "rope scaling 'yarn': key 'truncate' is false, which cannot be said in a GGUF file");
    note(
        "truncate: false is left out, as llama.cpp does: the ramp of YaRN begins and ends at whole "
        "pairs");
  }
  for (const char* key :
       {"attention_factor", "attn_factor", "extrapolation_factor", "mscale", "mscale_all_dim"})
    check(!find_field(parameters, key), "rope scaling 'yarn': key '", key,
          "' cannot be said in a GGUF file");
  rope.beta_fast = number_field(parameters, "beta_fast");
  rope.beta_slow = number_field(parameters, "beta_slow");
  check(rope.beta_fast.value_or(32) == 32 && rope.beta_slow.value_or(1) == 1,
        "rope scaling 'yarn': llama.cpp takes a beta_fast of 32 and a beta_slow of 1, found ",
        rope.beta_fast.value_or(32), " and ", rope.beta_slow.value_or(1));
}

void read_llama3(const Json& parameters, HfRope& rope) {
  const auto low = number_field(parameters, "low_freq_factor"),
             high = number_field(parameters, "high_freq_factor");
  check(low && high && *low > 0 && *high > *low,
        "rope type 'llama3': wants a 'low_freq_factor' above 0 and a larger 'high_freq_factor'");
  rope.low_frequency_factor = *low;
  rope.high_frequency_factor = *high;
}

/// A positive divisor for each pair.
std::vector<float> read_divisors(const Json& parameters, const char* key, int64_t pairs) {
  const Json* list = array_field(parameters, key);
  check(list && static_cast<int64_t>(list->size()) == pairs, "key '", key, "': wants ", pairs,
        " numbers, found ", list ? list->size() : 0);
  std::vector<float> divisors;
  for (const Json& divisor : *list) {
    check(divisor.is_number() && divisor.get<float>() > 0, "key '", key, "': ", divisor.dump(),
          " is no positive number");
    divisors.push_back(divisor.get<float>());
  }
  return divisors;
}

/// What phi3 has: two sets of divisors. GGUF has a key for the magnitude that follows from the two
/// contexts.
void read_long_rope(const Json& parameters, int64_t context_length, HfRope& rope) {
  for (const char* key : {"attention_factor", "short_mscale", "long_mscale"})
    check(!find_field(parameters, key), "rope scaling 'longrope': key '", key,
          "': nibble has the magnitude that follows from the contexts' lengths");
  const double factor = static_cast<double>(context_length) / rope.original_context;
  check(number_field(parameters, "factor").value_or(factor) == factor,
        "rope scaling 'longrope': key 'factor' is not max_position_embeddings (", context_length,
        ") over original_max_position_embeddings (", rope.original_context, ")");
  rope.long_divisors = read_divisors(parameters, "long_factor", rope.dimensions / 2);
  rope.short_divisors = read_divisors(parameters, "short_factor", rope.dimensions / 2);
}

int64_t read_dimensions(const Json& config, const Json& parameters,
                        const LlamaArchitecture& architecture, int64_t head_size) {
  constexpr const char* kKey = "partial_rotary_factor";
  const double share =
      number_field(parameters, kKey).value_or(number_field(config, kKey).value_or(1.0));
  check(share == 1.0 || architecture.has_long_rope || architecture.gates_attention, "key '", kKey,
        "': nibble turns whole heads only");
  const auto dimensions = static_cast<int64_t>(share * static_cast<double>(head_size));
  check(dimensions > 0 && dimensions <= head_size && dimensions % 2 == 0 &&
            static_cast<double>(dimensions) == share * static_cast<double>(head_size),
        "key '", kKey, "': ", share, " of a head of ", head_size, " is no even number of elements");
  return dimensions;
}

/// Of which missing ones are 0.
std::vector<int32_t> read_sections(const Json& parameters) {
  std::vector<int32_t> sections;
  const Json* given = array_field(parameters, "mrope_section");
  if (!given) return sections;
  for (const Json& section : *given) {
    check(section.is_number_unsigned() && section.get<uint64_t>() < 4096,
          "key 'mrope_section': wants small counts, found ", section.dump());
    sections.push_back(section.get<int32_t>());
  }
  sections.resize(4);
  return sections;
}

void check_type(const HfRope& rope, const LlamaArchitecture& architecture) {
  const bool known = architecture.has_long_rope
                         ? rope.type == "longrope"
                         : rope.type == "linear" || rope.type == "yarn" || rope.type == "llama3";
  check(known, "rope type '", rope.type, "' cannot be converted; nibble has ",
        architecture.has_long_rope ? "default and longrope" : "default, linear, yarn and llama3",
        " for ", architecture.name);
  check(rope.type != "llama3" || architecture.name == "llama", "rope type 'llama3': a ",
        architecture.name, " file has no divisors of angles");
}

}  // namespace

HfRope read_hf_rope(const Json& config, const LlamaArchitecture& architecture,
                    int64_t context_length, int64_t head_size) {
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
  if (rope.type == "su") rope.type = "longrope";  // its first name
  check(rope.base > 0, "key 'rope_theta' must be positive, is ", rope.base);
  rope.dimensions = read_dimensions(config, parameters, architecture, head_size);
  if (architecture.gates_attention) rope.sections = read_sections(parameters);
  constexpr const char* kOriginal = "original_max_position_embeddings";
  rope.original_context = int_field(parameters, kOriginal)
                              .value_or(int_field(config, kOriginal).value_or(context_length));
  check(rope.original_context > 0, "key '", kOriginal, "' must be positive, is ",
        rope.original_context);
  if (rope.type == "default") return rope;
  check_type(rope, architecture);
  if (rope.type == "longrope") {
    read_long_rope(parameters, context_length, rope);
    return rope;
  }
  const auto factor = number_field(parameters, "factor");
  check(factor && *factor > 0, "rope type '", rope.type, "': wants a positive 'factor'");
  rope.factor = *factor;
  if (rope.type == "yarn") read_yarn(parameters, architecture, rope);
  if (rope.type == "llama3") read_llama3(parameters, rope);
  return rope;
}

double long_rope_magnitude(const HfRope& rope, int64_t context_length) {
  const auto original = static_cast<double>(rope.original_context);
  const double factor = static_cast<double>(context_length) / original;
  return factor > 1 ? std::sqrt(1 + std::log(factor) / std::log(original)) : 1;
}

std::vector<RopeTensor> hf_rope_tensors(const HfRope& rope) {
  if (rope.type == "llama3") return {{kRopeDivisors, llama3_rope_divisors(rope)}};
  if (rope.type != "longrope") return {};
  return {{kRopeDivisorsLong, rope.long_divisors}, {kRopeDivisorsShort, rope.short_divisors}};
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
  if (!rope.sections.empty())
    metadata.set(prefix + "dimension_sections", GgufArray{GgufValueType::kInt32, rope.sections});
  set("freq_base", rope.base);
  if (rope.window_base > 0) set("freq_base_swa", rope.window_base);
}

std::vector<float> llama3_rope_divisors(const HfRope& rope) {
  if (rope.type != "llama3") return {};
  const auto low = static_cast<float>(rope.low_frequency_factor);
  const auto range = static_cast<float>(rope.high_frequency_factor - rope.low_frequency_factor);
  const auto context = static_cast<float>(rope.original_context);
  const auto factor = static_cast<float>(rope.factor), base = static_cast<float>(rope.base);
  const auto longest = static_cast<float>(rope.original_context / rope.low_frequency_factor);
  const auto shortest = static_cast<float>(rope.original_context / rope.high_frequency_factor);
  constexpr auto kTurn = static_cast<float>(2 * std::numbers::pi);
  std::vector<float> divisors;
  for (int64_t i = 0; i < rope.dimensions; i += 2) {
    // A number over a tensor is the tensor's reciprocal times the number there, so it is here.
    const float frequency =
        1.0f / std::pow(base, static_cast<float>(i) / static_cast<float>(rope.dimensions));
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
