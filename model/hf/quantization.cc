#include "model/hf/quantization.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/hf/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr const char* kInstead =
    "; nibble unpacks 4-bit gptq, awq (gemm), compressed-tensors (pack-quantized and "
    "mxfp4-pack-quantized) and mxfp4: convert the model that was not quantized instead";

/// A key that may hold one value only, or be missing.
void expect_text(const Json& object, const char* key, const char* wanted) {
  const std::string found = text_field(object, key).value_or(wanted);
  check(found == wanted, "key '", key, "': '", found, "'", kInstead);
}

void expect_4_bits(const Json& object, const char* key) {
  const int64_t bits = count_field(object, key);
  check(bits == 4, "codes of ", bits, " bits", kInstead);
}

int64_t read_group_size(const Json& object) {
  const int64_t size = int_field(object, "group_size").value_or(-1);
  check(size == -1 || size > 0, "key 'group_size' must be positive or -1, is ", size);
  return size;
}

HfQuantization read_gptq(const Json& json) {
  HfQuantization result{"gptq", HfPacking::kGptq};
  expect_4_bits(json, "bits");
  const std::string format = text_field(json, "checkpoint_format").value_or("gptq");
  check(format == "gptq" || format == "gptq_v2", "key 'checkpoint_format': '", format, "'",
        kInstead);
  result.zeros_minus_one = format == "gptq";
  result.group_size = read_group_size(json);
  result.orders_columns = bool_field(json, "desc_act").value_or(false);
  return result;
}

HfQuantization read_awq(const Json& json) {
  HfQuantization result{"awq", HfPacking::kAwq};
  expect_4_bits(json, "bits");
  const std::string version = text_field(json, "version").value_or("gemm");
  check(version == "gemm" || version == "GEMM", "key 'version': '", version, "'", kInstead);
  const std::string backend = text_field(json, "backend").value_or("autoawq");
  check(backend != "llm-awq", "key 'backend': '", backend, "'", kInstead);
  result.group_size = read_group_size(json);
  return result;
}

bool is_empty(const Json* value) { return !value || value->empty(); }

/// One of config_groups. Throws what the codes of its weights alone would not say.
HfQuantization read_config_group(const Json& group, const std::string& format) {
  HfQuantization result{"compressed-tensors"};
  const std::string own = text_field(group, "format").value_or(format);
  const bool floats = own == "mxfp4-pack-quantized";
  check(floats || own == "pack-quantized", "key 'format': '", own, "'", kInstead);
  result.packing = floats ? HfPacking::kMxfp4 : HfPacking::kCompressedTensors;
  const Json* weights = object_field(group, "weights");
  check(weights, "has no 'weights'");
  expect_4_bits(*weights, "num_bits");
  expect_text(*weights, "type", floats ? "float" : "int");
  for (const char* key : {"input_activations", "output_activations"})
    check(!object_field(group, key), "key '", key,
          "': the model rounds activations too; in a GGUF ", "file there is no place for that",
          kInstead);
  const std::string strategy = text_field(*weights, "strategy").value_or("group");
  check(strategy == "group" || (strategy == "channel" && !floats), "key 'strategy': '", strategy,
        "'", kInstead);
  result.group_size = strategy == "channel" ? -1 : read_group_size(*weights);
  check(!floats || result.group_size == 32, "key 'group_size': wants 32 of mxfp4, is ",
        result.group_size);
  if (const Json* order = find_field(*weights, "actorder"))
    result.orders_columns = *order == "group" || *order == true;
  return result;
}

HfQuantization read_compressed_tensors(const Json& json) {
  for (const char* key : {"transform_config", "sparsity_config", "kv_cache_scheme"})
    check(is_empty(object_field(json, key)), "key '", key, "' is set", kInstead);
  expect_text(json, "quantization_status", "compressed");
  const std::string format = text_field(json, "format").value_or("");
  const Json* groups = object_field(json, "config_groups");
  check(!is_empty(groups), "key 'config_groups': names none");
  std::optional<HfQuantization> result;
  for (const auto& [name, group] : groups->items())
    with_frame(concat("key 'config_groups': '", name, "'"), [&] {
      check(group.is_object(), "wants an object, found ", group.type_name());
      const HfQuantization read = read_config_group(group, format);
      check(!result || (result->packing == read.packing && result->group_size == read.group_size &&
                        result->orders_columns == read.orders_columns),
            "has another format or group size than the group before it; nibble takes one");
      result = read;
    });
  return *result;
}

HfQuantization read_method(const Json& json, const std::string& method) {
  if (method == "gptq") return read_gptq(json);
  if (method == "awq") return read_awq(json);
  if (method == "compressed-tensors") return read_compressed_tensors(json);
  if (method == "mxfp4") return {"mxfp4", HfPacking::kMxfp4Stacks, 32};
  fail("the model is quantized by ", method, kInstead);
}

}  // namespace

std::optional<HfQuantization> read_hf_quantization(const std::string& folder, const Json& config) {
  const Json* json = object_field(config, "quantization_config");
  // Of a model that sees too, where it may be said of the language model.
  if (const Json* text = object_field(config, "text_config"); text && !json)
    json = object_field(*text, "quantization_config");
  if (json)
    return with_frame(folder + "/config.json: key 'quantization_config'", [&] {
      return read_method(*json,
                         text_field(*json, "quant_method").value_or("a method without a name"));
    });
  const std::string path = folder + "/quantize_config.json";
  const auto file = read_json_file(path);
  if (!file) return std::nullopt;
  return with_frame(
      path, [&] { return read_method(*file, text_field(*file, "quant_method").value_or("gptq")); });
}

}  // namespace nibble
