#include "model/hf/adapter.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "model/hf/config.h"
#include "model/hf/json_fields.h"
#include "model/hf/source_type.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

/// Whether a setting is anything but off: null, false, empty.
bool is_set(const Json& config, const char* key) {
  const Json* value = find_field(config, key);
  return value && *value != false && !(value->is_structured() && value->empty());
}

/// Settings under which the model would compute something else than W + scale * B A.
void refuse_unknown(const Json& config) {
  const std::string type = text_field(config, "peft_type").value_or("none");
  check(type == "LORA", "key 'peft_type': '", type, "'; nibble merges LORA");
  for (const char* key :
       {"use_dora", "fan_in_fan_out", "lora_bias", "layer_replication", "trainable_token_indices",
        "target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config",
        "kasa_config", "monteclora_config", "velora_config", "megatron_config"})
    check(!is_set(config, key), "key '", key,
          "' is set; nibble merges plain LoRA: merge with peft's merge_and_unload() instead");
  const std::string bias = text_field(config, "bias").value_or("none");
  check(bias == "none", "key 'bias': '", bias, "'; nibble merges adapters that train no biases");
  const Json* initial = find_field(config, "init_lora_weights");
  const bool keeps_base =
      !initial || initial->is_boolean() || *initial == "gaussian" || *initial == "eva";
  check(keeps_base, "key 'init_lora_weights': ", initial ? initial->dump() : "",
        " changes the model's own weights at its start; save the adapter with peft's "
        "path_initial_model_for_weight_conversion");
}

/// Names of modules with their alphas. Other regular expressions than names are refused.
std::vector<std::pair<std::string, double>> read_alpha_pattern(const Json& config) {
  std::vector<std::pair<std::string, double>> result;
  const Json* pattern = object_field(config, "alpha_pattern");
  if (!pattern) return result;
  for (const auto& [name, value] : pattern->items()) {
    const bool plain = !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '-';
    });
    check(plain, "key 'alpha_pattern': '", name, "' is no plain name of a module");
    check(value.is_number(), "key 'alpha_pattern': '", name, "': wants a number, found ",
          value.type_name());
    result.emplace_back(name, value.get<double>());
  }
  return result;
}

std::string shape_text(const SafetensorsEntry& entry) {
  std::string text = "[";
  for (const int64_t size : entry.shape) text += concat(text.size() > 1 ? ", " : "", size);
  return text + ']';
}

std::vector<float> decoded(const SafetensorsEntry& entry) {
  int64_t count = 1;
  for (const int64_t size : entry.shape) count *= size;
  std::vector<float> values(static_cast<size_t>(count));
  hf_decode(entry, entry.data, values);
  check_finite(values, entry.shape.back());
  return values;
}

}  // namespace

void LowRankUpdate::add_to(int64_t row, std::span<float> weights) const {
  std::vector<float> sum(weights.size(), 0.0f);
  for (int64_t k = 0; k < rank; ++k) {
    const float factor = b[static_cast<size_t>(row * rank + k)];
    const float* values = a.data() + static_cast<size_t>(k) * weights.size();
    for (size_t i = 0; i < weights.size(); ++i) sum[i] += factor * values[i];
  }
  for (size_t i = 0; i < weights.size(); ++i) weights[i] += scale * sum[i];
}

HfAdapter HfAdapter::open(const std::string& folder) {
  const std::string config_path = folder + "/adapter_config.json";
  const auto config = read_json_file(config_path);
  check(config.has_value(), folder, ": has no adapter_config.json: no folder of a PEFT adapter");
  const std::string path = folder + "/adapter_model.safetensors";
  check(std::filesystem::exists(path), folder, ": has no adapter_model.safetensors",
        std::filesystem::exists(folder + "/adapter_model.bin")
            ? "; adapter_model.bin is a pickle, which nibble does not open: save the adapter with "
              "peft's save_pretrained()"
            : "");
  HfAdapter adapter(SafetensorsFile::open(path));
  with_frame(config_path, [&] { adapter.read_config(*config); });
  for (const SafetensorsEntry& entry : adapter.file_->entries())
    with_frame(concat(path, ": tensor '", entry.name, "'"), [&] { adapter.add(entry); });
  for (const auto& [name, pair] : adapter.pairs_)
    check(pair.a && pair.b, path, ": of '", name, "' ", pair.a ? "lora_B" : "lora_A",
          " is missing");
  check(!adapter.pairs_.empty() || !adapter.replacements_.empty(), path, ": changes nothing");
  return adapter;
}

void HfAdapter::read_config(const Json& config) {
  refuse_unknown(config);
  const auto alpha = number_field(config, "lora_alpha");
  check(alpha.has_value(), "has no 'lora_alpha'");
  alpha_ = *alpha;
  root_of_rank_ = bool_field(config, "use_rslora").value_or(false);
  alpha_pattern_ = read_alpha_pattern(config);
}

void HfAdapter::add(const SafetensorsEntry& entry) {
  constexpr std::string_view kPrefix = "base_model.model.", kA = ".lora_A.weight",
                             kB = ".lora_B.weight";
  check(entry.name.starts_with(kPrefix), "its name does not begin with ", kPrefix);
  const std::string name = text_tensor_name(entry.name.substr(kPrefix.size()));
  check(!name.empty(), "is of another part than the language model");
  check(name.find(".lora_embedding_") == std::string::npos,
        "LoRA of embeddings is not merged; merge with peft's merge_and_unload() instead");
  const bool is_a = name.ends_with(kA);
  if (!is_a && !name.ends_with(kB)) {
    check(name.find(".lora_") == std::string::npos, "nibble merges lora_A and lora_B only");
    replacements_[name] = {file_.get(), &entry};
    return;
  }
  check(entry.shape.size() == 2, "has the shape ", shape_text(entry), ", wanted two sizes");
  Pair& pair = pairs_[name.substr(0, name.size() - kA.size()) + ".weight"];
  (is_a ? pair.a : pair.b) = &entry;
}

std::vector<std::string> HfAdapter::tensors() const {
  std::vector<std::string> names;
  for (const auto& [name, pair] : pairs_) names.push_back(name);
  for (const auto& [name, tensor] : replacements_) names.push_back(name);
  return names;
}

const HfCheckpoint::Tensor* HfAdapter::replacement(const std::string& name) const {
  const auto found = replacements_.find(name);
  return found == replacements_.end() ? nullptr : &found->second;
}

double HfAdapter::alpha_of(const std::string& module) const {
  std::optional<double> alpha;
  for (const auto& [name, value] : alpha_pattern_) {
    if (module != name && !module.ends_with('.' + name)) continue;
    check(!alpha || *alpha == value, "key 'alpha_pattern': two of its names are ends of '", module,
          "', with other values");
    alpha = value;
  }
  return alpha.value_or(alpha_);
}

LowRankUpdate HfAdapter::update(const std::string& name, int64_t rows, int64_t columns) const {
  const auto& [a, b] = pairs_.at(name);
  return with_frame(concat(path(), ": LoRA of '", name, "'"), [&, a = a, b = b] {
    const int64_t rank = a->shape[0];
    check(rank > 0 && a->shape[1] == columns && b->shape[0] == rows && b->shape[1] == rank,
          "lora_A ", shape_text(*a), " and lora_B ", shape_text(*b), " do not fit a matrix of [",
          rows, ", ", columns, ']');
    const std::string module = name.substr(0, name.rfind('.'));
    const auto ranks = static_cast<double>(rank);
    const double scale = alpha_of(module) / (root_of_rank_ ? std::sqrt(ranks) : ranks);
    return LowRankUpdate{rank, static_cast<float>(scale), decoded(*a), decoded(*b)};
  });
}

}  // namespace nibble
