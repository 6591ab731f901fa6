#include "model/hf/wanted_tensors.h"

#include <string_view>
#include <utility>

#include "base/error.h"

namespace nibble {
namespace {

using L = LlamaLayer;

/// Of architectures whose checkpoints have norms of 1 + w, but for the delta net's.
HfChange change_of(std::string_view hf_name, const LlamaArchitecture& architecture) {
  if (hf_name.ends_with(".A_log")) return HfChange::kMinusExp;
  const bool adds_one = architecture.is_gemma || architecture.delta_bit != 0;
  const bool is_norm = hf_name.ends_with("norm.weight") || hf_name.starts_with("mtp.pre_fc_norm_");
  return adds_one && is_norm && hf_name != "linear_attn.norm.weight" ? HfChange::kAddOne
                                                                     : HfChange::kNone;
}

}  // namespace

std::vector<int64_t> WantedTensors::Target::shape() const {
  std::vector<int64_t> shape = {is_matrix ? row_length : row_length * rows};
  if (is_matrix) shape.push_back(rows);
  if (num_experts > 0) shape.push_back(num_experts);
  return shape;
}

std::string WantedTensors::Target::part_name(int64_t index) const {
  std::string part = hf_name;
  if (const size_t star = part.find('*'); star != std::string::npos)
    part.replace(star, 1, std::to_string(index));
  return part;
}

std::vector<int64_t> WantedTensors::Target::part_shape() const {
  if (is_convolution) return {rows, 1, row_length};
  if (!is_matrix) return {row_length};
  return {source_rows(), row_length};
}

int64_t WantedTensors::Target::source_row(int64_t row) const {
  for (const auto& [first, length, count, stride] : runs) {
    if (row < count * length) return first + row / length * stride + row % length;
    row -= count * length;
  }
  return rows_order.source(row);
}

WantedTensors::WantedTensors(const HfConfig& config) : config_(config) {
  for (const LlamaModelTensor& tensor : llama_model_tensors())
    if (!config_.architecture->is_always_tied || std::string_view(tensor.name) != kOutput)
      add_single(tensor, "");
  const int64_t layers = config_.sizes.num_layers;
  for (int64_t layer = 0; layer < layers; ++layer)
    for (const LlamaTensorRow& row : llama_tensor_rows())
      add_layer(row, layer, concat("model.layers.", layer, '.'));
  for (int64_t i = 0; i < config_.mtp_layers; ++i) {
    for (const LlamaTensorRow& row : llama_tensor_rows())
      add_layer(row, layers + i, concat("mtp.layers.", i, '.'));
    for (const LlamaModelTensor& tensor : llama_mtp_tensors())
      add_single(tensor, concat("blk.", layers + i, '.'));
  }
}

void WantedTensors::add_single(const LlamaModelTensor& tensor, const std::string& prefix) {
  Target target{prefix + tensor.name, tensor.hf_name, config_.sizes.of(tensor.row_length),
                config_.sizes.of(tensor.rows)};
  target.is_matrix = tensor.rows != LlamaSize::kOne;
  target.required = std::string_view(tensor.name) != kOutput || !config_.tied;
  target.change = change_of(tensor.hf_name, *config_.architecture);
  add(std::move(target));
}

std::span<const WantedTensors::Place> WantedTensors::find(const std::string& hf_name) const {
  const auto found = places_.find(hf_name);
  return found == places_.end() ? std::span<const Place>() : found->second;
}

void WantedTensors::add_layer(const LlamaTensorRow& row, int64_t layer, const std::string& prefix) {
  const LlamaSizes& sizes = config_.sizes;
  const Presence presence = row.presence(*config_.architecture, sizes.delta.is_in(layer));
  const bool bias = presence == Presence::kOptional;
  const bool has_bias = std::string_view(row.hf_name).starts_with("self_attn.")
                            ? config_.attention_biases
                            : config_.feed_forward_biases;
  if (presence == Presence::kNone || (bias && !has_bias)) return;
  Target target{concat("blk.", layer, '.', row.name), prefix + row.hf_name,
                sizes.of(row.row_length), sizes.of(row.rows)};
  target.is_matrix = row.rows != LlamaSize::kOne;
  target.is_convolution = row.slot == &L::delta_kernel;
  target.change = change_of(row.hf_name, *config_.architecture);
  if (row.turned && !config_.architecture->turns_halves)
    // Elements i and i + d/2 of a head come to stand beside each other.
    (target.is_matrix ? target.rows_order : target.columns_order) = {0, 2, sizes.head_size / 2, 1};
  if (sizes.delta.is_in(layer) && !config_.architecture->keeps_value_heads)
    order_value_heads(row, target);
  if (std::string_view(row.hf_name).ends_with(".in_proj_qkvz.weight")) split_key_heads(row, target);
  if (row.is_stack()) {
    target.num_experts = sizes.num_experts;
    if (config_.architecture->has_sinks) return add_stack_of_columns(std::move(target), row.slot);
    return add_stack(std::move(target), row.slot, prefix + "mlp.");
  }
  // What transformers 5 calls it in memory, as it does the stacks.
  if (row.slot == &L::router && target.hf_name != prefix + "mlp.gate.weight")
    places_[prefix + "mlp.gate.weight"] = {{targets_.size(), 0, 1, 0, 0, target.part_shape()}};
  add(std::move(target));
}

/// Checkpoints have the value heads of a key head beside each other, GGUF those of all key heads.
void WantedTensors::order_value_heads(const LlamaTensorRow& row, Target& target) const {
  const DeltaNetSizes& delta = config_.sizes.delta;
  const HfOrder heads{0, delta.key_heads, delta.value_heads / delta.key_heads, 1};
  HfOrder values = heads;
  values.size = delta.head_size;
  if (row.rows == LlamaSize::kDeltaHeads) target.rows_order = heads;
  if (row.row_length == LlamaSize::kDeltaHeads) target.columns_order = heads;
  if (row.rows == LlamaSize::kDeltaValue) target.rows_order = values;
  if (row.row_length == LlamaSize::kDeltaValue) target.columns_order = values;
  if (row.rows == LlamaSize::kDeltaMixed) {
    target.rows_order = values;
    target.rows_order.first = 2 * delta.key();
  }
}

/// Of each key head the checkpoint has its query, its key, its value heads and their gates; GGUF
/// has the gates by themselves, and the others kind by kind.
void WantedTensors::split_key_heads(const LlamaTensorRow& row, Target& target) const {
  const DeltaNetSizes& delta = config_.sizes.delta;
  const int64_t size = delta.head_size, heads = delta.key_heads, values = delta.value() / heads,
                stride = 2 * (size + values);
  if (row.slot == &L::delta_gate)
    target.runs = {{2 * size + values, values, heads, stride}};
  else
    target.runs = {
        {0, size, heads, stride}, {size, size, heads, stride}, {2 * size, values, heads, stride}};
}

void WantedTensors::add_name(const std::string& name) {
  // Tensors that several targets are made of are wanted by one after the other.
  if (names_.empty() || names_.back() != name) names_.push_back(name);
}

void WantedTensors::add(Target target) {
  add_name(target.hf_name);
  places_[target.hf_name].push_back({targets_.size(), 0, 1, 0, 0, target.part_shape()});
  targets_.push_back(std::move(target));
}

void WantedTensors::add_stack(Target target, Weight* LlamaLayer::*slot, const std::string& mlp) {
  const size_t index = targets_.size();
  const int64_t experts = target.num_experts, rows = target.rows;
  const bool is_down = slot == &L::down_experts;
  for (int64_t expert = 0; expert < experts; ++expert) {
    places_[target.part_name(expert)] = {{index, expert, 1, 0, 0, target.part_shape()}};
    add_name(target.part_name(expert));
  }
  // Of each expert gate's rows, then up's.
  const int64_t stride = is_down ? rows : 2 * rows;
  places_[mlp + (is_down ? "experts.down_proj" : "experts.gate_up_proj")].push_back(
      {index,
       0,
       experts,
       slot == &L::up_experts ? rows : 0,
       stride,
       {experts, stride, target.row_length}});
  targets_.push_back(std::move(target));
}

/// gpt-oss's: an expert's rows are columns, those of gate and up by turns; so are the numbers of
/// their biases.
void WantedTensors::add_stack_of_columns(Target target, Weight* LlamaLayer::*slot) {
  const bool is_up = slot == &L::up_experts || slot == &L::up_experts_bias;
  const bool is_down = slot == &L::down_experts || slot == &L::down_experts_bias;
  target.is_transposed = target.is_matrix;
  if (!target.is_matrix) std::swap(target.row_length, target.rows);
  if (!is_down) target.runs = {{is_up ? 1 : 0, 1, target.rows, 2}};
  const int64_t experts = target.num_experts, columns = target.source_rows();
  std::vector<int64_t> shape = {experts, columns};
  if (target.is_matrix) shape.insert(shape.begin() + 1, target.row_length);
  add_name(target.hf_name);
  places_[target.hf_name].push_back({targets_.size(), 0, experts, 0, columns, std::move(shape)});
  targets_.push_back(std::move(target));
}

}  // namespace nibble
