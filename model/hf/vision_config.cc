#include "model/hf/vision_config.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/hf/json_fields.h"
#include "quant/format/registry.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMostMerged = 64;  // patches of a side that become one position

std::vector<float> three_numbers(const Json& config, const char* key) {
  const Json* values = array_field(config, key);
  check(values, "has no '", key, "'");
  check(values->size() == VisionConfig::kChannels, "key '", key, "': wants ",
        VisionConfig::kChannels, " numbers, has ", values->size());
  std::vector<float> numbers;
  for (const Json& value : *values) {
    check(value.is_number(), "key '", key, "': wants numbers, found ", value.type_name());
    numbers.push_back(value.get<float>());
  }
  return numbers;
}

/// How pictures are prepared, out of the files that transformers reads.
Json read_preprocessor(const std::string& folder) {
  Json result = Json::object();
  for (const char* file : {"/preprocessor_config.json", "/processor_config.json"}) {
    const auto json = read_json_file(folder + file);
    if (!json) continue;
    result.update(*json);
    if (const Json* of_images = object_field(*json, "image_processor")) result.update(*of_images);
  }
  check(!result.empty(), folder,
        ": has neither preprocessor_config.json nor processor_config.json, which say how pictures "
        "are prepared");
  return result;
}

/// 0 for negative numbers.
int64_t whole_root(int64_t number) {
  return static_cast<int64_t>(std::sqrt(std::max(0.0, static_cast<double>(number))));
}

void read_gemma(const Json& vision, VisionConfig& tower) {
  tower.heads = count_field(vision, "num_attention_heads");
  tower.layers = count_field(vision, "num_hidden_layers");
  tower.image = count_field(vision, "image_size");
  tower.epsilon = number_field(vision, "layer_norm_eps").value_or(1e-6);
}

void read_qwen(const Json& vision, const Json& text, VisionConfig& tower) {
  tower.heads = count_field(vision, "num_heads");
  tower.layers = count_field(vision, "depth");
  tower.merged = count_field(vision, "spatial_merge_size");
  check(tower.merged <= kMostMerged, "key 'spatial_merge_size': ", tower.merged);
  check(count_field(vision, "temporal_patch_size") == VisionConfig::kFrames,
        "key 'temporal_patch_size': nibble and llama.cpp have ", VisionConfig::kFrames);
  const int64_t positions = count_field(vision, "num_position_embeddings");
  const int64_t side = whole_root(positions);
  check(side * side == positions, "key 'num_position_embeddings': ", positions, " is no square");
  tower.image = side * tower.patch;
  tower.epsilon = number_field(text, "rms_norm_eps").value_or(1e-6);
  const Json* deep = array_field(vision, "deepstack_visual_indexes");
  check(!deep || deep->empty(),
        "key 'deepstack_visual_indexes': nibble has towers whose last layer alone is used");
}

VisionConfig read_tower(const Json& config) {
  const Json* names = array_field(config, "architectures");
  const std::string family = names && !names->empty() && names->front().is_string()
                                 ? names->front().get<std::string>()
                                 : "";
  const Json *vision = object_field(config, "vision_config"),
             *text = object_field(config, "text_config");
  check(vision && text, "has no 'vision_config' beside a 'text_config': a model that does not see");
  VisionConfig tower;
  tower.is_gemma = family == "Gemma3ForConditionalGeneration";
  check(tower.is_gemma || family.starts_with("Qwen3_5"), "'", family,
        "': nibble has the towers of Gemma3ForConditionalGeneration, "
        "Qwen3_5ForConditionalGeneration and Qwen3_5MoeForConditionalGeneration");
  tower.width = count_field(*vision, "hidden_size");
  tower.wide = count_field(*vision, "intermediate_size");
  tower.patch = count_field(*vision, "patch_size");
  tower.text_width = count_field(*text, "hidden_size");
  if (tower.is_gemma)
    read_gemma(*vision, tower);
  else
    read_qwen(*vision, *text, tower);
  return tower;
}

void read_pictures(const Json& preprocessor, VisionConfig& tower) {
  tower.mean = three_numbers(preprocessor, "image_mean");
  tower.deviation = three_numbers(preprocessor, "image_std");
  if (!tower.is_gemma) return;
  const int64_t side = whole_root(int_field(preprocessor, "image_seq_length").value_or(256));
  check(side > 0, "key 'image_seq_length' must be positive");
  // llama.cpp's own is 4.
  const int64_t factor = tower.image / tower.patch / side;
  if (factor != 4) tower.scale_factor = factor;
}

}  // namespace

VisionConfig read_vision_config(const std::string& folder, const Json& config) {
  VisionConfig tower = with_frame(folder + "/config.json", [&] { return read_tower(config); });
  const Json preprocessor = read_preprocessor(folder);
  with_frame(folder + "/preprocessor_config.json", [&] { read_pictures(preprocessor, tower); });
  return tower;
}

GgufMetadata vision_metadata(const VisionConfig& tower, GgmlType matrix_type) {
  GgufMetadata keys;
  const auto set = [&](const char* key, int64_t value) {
    keys.set(key, static_cast<uint32_t>(value));
  };
  const auto numbers = [](const std::vector<float>& values) {
    return GgufArray{GgufValueType::kFloat32, values};
  };
  set("general.file_type", require_format(matrix_type).ftype);
  keys.set("clip.has_vision_encoder", true);
  set("clip.vision.projection_dim", tower.text_width);
  set("clip.vision.image_size", tower.image);
  set("clip.vision.patch_size", tower.patch);
  set("clip.vision.embedding_length", tower.width);
  set("clip.vision.feed_forward_length", tower.wide);
  set("clip.vision.block_count", tower.layers);
  set("clip.vision.attention.head_count", tower.heads);
  keys.set("clip.vision.image_mean", numbers(tower.mean));
  keys.set("clip.vision.image_std", numbers(tower.deviation));
  keys.set("clip.projector_type", std::string(tower.is_gemma ? "gemma3" : "qwen3vl_merger"));
  const auto set_epsilon = [&] {
    keys.set("clip.vision.attention.layer_norm_epsilon", static_cast<float>(tower.epsilon));
  };
  if (tower.is_gemma) {
    set_epsilon();
    keys.set("clip.use_gelu", true);
    if (tower.scale_factor > 0) set("clip.vision.projector.scale_factor", tower.scale_factor);
    return keys;
  }
  keys.set("clip.use_gelu", true);
  set("clip.vision.spatial_merge_size", tower.merged);
  set_epsilon();
  keys.set(
      "clip.vision.is_deepstack_layers",
      GgufArray{GgufValueType::kBool, std::vector<uint8_t>(static_cast<size_t>(tower.layers))});
  return keys;
}

}  // namespace nibble
