#include "model/hf/wanted_tensors.h"

#include <string_view>
#include <utility>

#include "base/error.h"

namespace nibble {

WantedTensors::WantedTensors(const HfConfig& config) : sizes_(config.sizes) {
  for (const LlamaModelTensor& tensor : llama_model_tensors())
    if (!config.architecture->is_always_tied || std::string_view(tensor.name) != kOutput)
      add(tensor.hf_name, tensor.name, tensor.row_length, tensor.rows, 0,
          tensor.presence == Presence::kRequired || !config.tied);
  for (int64_t layer = 0; layer < sizes_.num_layers; ++layer)
    for (const LlamaTensorRow& row : llama_tensor_rows()) add_layer(config, row, layer);
}

const WantedTensors::Place* WantedTensors::find(const std::string& hf_name) const {
  const auto found = places_.find(hf_name);
  return found == places_.end() ? nullptr : &found->second;
}

void WantedTensors::add_layer(const HfConfig& config, const LlamaTensorRow& row, int64_t layer) {
  const Presence presence = row.presence(*config.architecture);
  const bool bias = presence == Presence::kOptional;
  const bool has_bias = std::string_view(row.hf_name).starts_with("self_attn.")
                            ? config.attention_biases
                            : config.feed_forward_biases;
  if (presence == Presence::kNone || (bias && !has_bias)) return;
  const bool reordered = row.turned && !config.architecture->turns_halves;
  const bool query = row.slot == &LlamaLayer::query || row.slot == &LlamaLayer::query_bias;
  const int64_t heads = query ? sizes_.num_heads : sizes_.num_kv_heads;
  add(concat("model.layers.", layer, '.', row.hf_name), concat("blk.", layer, '.', row.name),
      row.row_length, row.rows, reordered ? heads : 0, true);
}

void WantedTensors::add(std::string hf_name, std::string name, LlamaSize row_length, LlamaSize rows,
                        int64_t heads, bool required) {
  Place place{std::move(name), sizes_.of(row_length), sizes_.of(rows), heads,
              rows != LlamaSize::kOne};
  if (required) required_.push_back(hf_name);
  places_.emplace(std::move(hf_name), std::move(place));
}

}  // namespace nibble
