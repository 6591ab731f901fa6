#include "model/llama.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "model/activation_rounding.h"
#include "model/attention.h"
#include "model/layers.h"
#include "model/made_weight.h"
#include "model/recompute.h"
#include "quant/mix/rules.h"

namespace nibble {
namespace {

std::string layer_tensor(int64_t layer, const LlamaTensorRow& row) {
  return concat("blk.", layer, ".", row.name);
}

LlamaSizes sizes_of(const LlamaOptions& options) {
  return {options.shape.num_layers,    options.shape.width,         options.shape.vocab_size,
          options.num_heads,           options.num_kv_heads,        options.head_size,
          options.feed_forward,        options.shape.num_experts,   options.experts_used,
          options.expert_feed_forward, options.shared_feed_forward, options.delta};
}

/// Whether a model of these blocks, with or without what is around them, has the tensor.
bool is_in_part(const std::string& name, const LlamaOptions& options, bool ends) {
  if (name == kRopeDivisors || name == kRopeDivisorsLong || name == kRopeDivisorsShort) return true;
  const std::optional<int64_t> block = layer_of(name);
  if (!block) return ends;
  return *block >= options.first_block && *block < options.first_block + options.shape.num_layers;
}

/// The values of a constant among the weights, which it leaves; empty where there is none.
std::vector<float> take_divisors(std::vector<std::unique_ptr<Weight>>& weights, const char* name) {
  const auto found = std::find_if(weights.begin(), weights.end(),
                                  [&](const auto& weight) { return weight->name == name; });
  if (found == weights.end()) return {};
  const torch::Tensor values = (*found)->value.cpu();
  weights.erase(found);
  return {values.data_ptr<float>(), values.data_ptr<float>() + values.numel()};
}

torch::Tensor scaled(const torch::Tensor& x, double scale) { return scale == 1 ? x : x * scale; }

torch::Tensor add_bias(const torch::Tensor& x, const Weight* bias) {
  return bias ? x + bias->value : x;
}

}  // namespace

std::vector<TensorSpec> llama_tensors(const LlamaOptions& options) {
  const LlamaArchitecture& architecture = options.architecture;
  const LlamaSizes sizes = sizes_of(options);
  const auto spec = [&](std::string name, LlamaSize row_length, LlamaSize rows, Presence presence,
                        bool is_stack = false) {
    std::vector<int64_t> shape = {sizes.of(row_length)};
    if (rows != LlamaSize::kOne) shape.push_back(sizes.of(rows));
    if (is_stack) shape.push_back(sizes.num_experts);
    return TensorSpec{std::move(name), shape, presence == Presence::kRequired};
  };
  std::vector<TensorSpec> specs;
  for (const LlamaModelTensor& tensor : llama_model_tensors())
    if (!architecture.is_always_tied || std::string_view(tensor.name) != kOutput)
      specs.push_back(spec(tensor.name, tensor.row_length, tensor.rows, tensor.presence));
  const std::vector<int64_t> pairs = {options.rope.dimensions / 2};
  specs.push_back({kRopeDivisors, pairs, false});
  if (architecture.has_long_rope)
    for (const char* name : {kRopeDivisorsLong, kRopeDivisorsShort})
      specs.push_back({name, pairs, false});
  const int64_t layers = sizes.num_layers + options.mtp_layers;
  for (int64_t layer = 0; layer < layers; ++layer)
    for (const LlamaTensorRow& row : llama_tensor_rows())
      if (const Presence presence = row.presence(architecture, sizes.delta.is_in(layer));
          presence != Presence::kNone)
        specs.push_back(
            spec(layer_tensor(layer, row), row.row_length, row.rows, presence, row.is_stack()));
  for (int64_t layer = sizes.num_layers; layer < layers; ++layer)
    for (const LlamaModelTensor& tensor : llama_mtp_tensors())
      specs.push_back(spec(concat("blk.", layer, '.', tensor.name), tensor.row_length, tensor.rows,
                           tensor.presence));
  return specs;
}

ActivationBytes llama_activation_bytes(const LlamaOptions& options, torch::Dtype dtype) {
  const int64_t full = sizeof(float), cast = dtype == torch::kFloat32 ? 0 : sizeof(at::BFloat16);
  const int64_t used = cast ? cast : full;  // of what enters a matmul
  const int64_t width = options.shape.width, wide = options.feed_forward;
  const int64_t query = options.num_heads * options.head_size;
  const int64_t key = options.num_kv_heads * options.head_size;
  ActivationBytes bytes;
  bytes.num_blocks = options.shape.num_layers;
  bytes.block_input = width * full;
  // Per half of the block: the norm's input and its result, as the matmuls take it.
  bytes.block = 2 * width * (full + used);
  // Attention: heads, its result, that result with the documents joined.
  int64_t attention = (query + 2 * key + query + query) * used + options.num_heads * full;
  // Norms of heads: what goes in, and one number for each.
  const bool is_gemma = options.architecture.is_gemma;
  const bool is_gated = options.architecture.gates_attention;
  if (options.shape.architecture.starts_with("qwen3") || options.shape.architecture == "gemma3")
    attention += (query + key + options.num_heads + options.num_kv_heads) * full;
  // A gate and what it multiplies.
  if (is_gated) attention += 2 * query * full;
  const auto recurrent = std::count(options.delta.layers.begin(), options.delta.layers.end(), true);
  const int64_t delta =
      recurrent > 0 ? delta_net_activation_bytes(options.delta) + options.delta.value() * used : 0;
  bytes.block +=
      (recurrent * delta + (bytes.num_blocks - recurrent) * attention) / bytes.num_blocks;
  // What goes into the norms after attention and feed-forward, and GELU's result.
  if (is_gemma) bytes.block += (2 * width + wide) * full;
  // gate and up, and their product as the last matmul takes it.
  bytes.block += options.architecture.has_experts
                     ? mixture_bytes({options.shape.num_experts, options.experts_used, width,
                                      options.expert_feed_forward, options.shared_feed_forward,
                                      options.architecture.has_sinks},
                                     used)
                     : 2 * wide * full + wide * used;
  return bytes;
}

Llama::Llama(LlamaOptions options, std::vector<std::unique_ptr<Weight>> weights)
    : options_(std::move(options)),
      weights_(std::move(weights)),
      rope_(options_.rope),
      window_rope_(options_.window_rope),
      long_rope_(options_.long_rope) {
  bind();
}

void Llama::bind() {
  std::unordered_map<std::string, Weight*> by_name;
  for (const auto& weight : weights_) by_name[weight->name] = weight.get();
  const auto find = [&](const std::string& name) -> Weight* {
    const auto found = by_name.find(name);
    return found == by_name.end() ? nullptr : found->second;
  };
  token_embedding_ = find(kTokenEmbedding);
  output_norm_ = find(kOutputNorm);
  output_ = find(kOutput);
  layers_.resize(options_.shape.num_layers);
  for (size_t i = 0; i < layers_.size(); ++i)
    for (const LlamaTensorRow& row : llama_tensor_rows())
      if (row.presence(options_.architecture, has_delta_net(i)) != Presence::kNone)
        layers_[i].*row.slot = find(layer_tensor(block_of(i), row));
  // A file may have the one row as a vector.
  for (const LlamaLayer& layer : layers_)
    if (layer.shared_router) layer.shared_router->value = layer.shared_router->value.view({1, -1});
}

std::vector<Weight*> Llama::weights() {
  std::vector<Weight*> pointers;
  for (const auto& weight : weights_) pointers.push_back(weight.get());
  return pointers;
}

const torch::Tensor& Llama::output_weight() const {
  return (output_ ? output_ : token_embedding_)->value;
}

Llama::Heads Llama::heads(const LlamaLayer& layer, const torch::Tensor& x,
                          const torch::Tensor& rotation) const {
  const torch::Tensor normed = rms_norm(x, layer.attention_norm->value, options_.norm_epsilon);
  const int64_t size = options_.head_size;
  std::vector<torch::Tensor> projected;
  if (layer.query_key_value) {
    const int64_t query = options_.num_heads * size, key = options_.num_kv_heads * size;
    projected = project(normed, {layer.query_key_value})[0].split_with_sizes({query, key, key}, 1);
  } else {
    projected = project(normed, {layer.query, layer.key, layer.value});
  }
  // A part of a fused matrix' result by itself, so that what is kept of one keeps not all.
  const auto split = [&](const torch::Tensor& all, const Weight* bias, int64_t num_heads) {
    return add_bias(all, bias).contiguous().view({x.size(0), num_heads, size});
  };
  torch::Tensor query = projected[0], gate;
  if (options_.architecture.gates_attention) {
    // Of each head first the query, then its gate.
    const torch::Tensor both = query.view({x.size(0), options_.num_heads, 2, size});
    query = both.select(2, 0).flatten(1);
    gate = both.select(2, 1).flatten(1);
  }
  const auto turned = [&](const torch::Tensor& heads, const Weight* norm) {
    const torch::Tensor each =
        norm ? rms_norm(heads.flatten(0, 1), norm->value, options_.norm_epsilon).view_as(heads)
             : heads;
    return rotation.defined() ? rotate(each, rotation, options_.rope.pairs) : each;
  };
  return {turned(split(query, layer.query_bias, options_.num_heads), layer.query_norm),
          turned(split(projected[1], layer.key_bias, options_.num_kv_heads), layer.key_norm),
          split(projected[2], layer.value_bias, options_.num_kv_heads), gate};
}

std::vector<Weight*> Llama::delta_projections(const LlamaLayer& layer) {
  if (layer.delta_beta_alpha) return {layer.delta_mixed, layer.delta_gate, layer.delta_beta_alpha};
  return {layer.delta_mixed, layer.delta_gate, layer.delta_alpha, layer.delta_beta};
}

torch::Tensor Llama::delta_net(const LlamaLayer& layer, const torch::Tensor& x,
                               const DocumentChunks& chunks, DeltaNetState* state) const {
  const torch::Tensor normed = rms_norm(x, layer.attention_norm->value, options_.norm_epsilon);
  const std::vector<Weight*> projections = delta_projections(layer);
  const std::vector<torch::Tensor> projected =
      project(normed, {projections.begin(), projections.end()});
  torch::Tensor alpha = projected[2], beta = projected.back();
  if (layer.delta_beta_alpha) {
    // Of each key head first its value heads' betas, then their alphas.
    const torch::Tensor both = beta.view({x.size(0), options_.delta.key_heads, 2, -1});
    beta = both.select(2, 0).flatten(1);
    alpha = both.select(2, 1).flatten(1);
  }
  return gated_delta_net({projected[0], projected[1], alpha, beta},
                         {layer.delta_kernel->value, layer.delta_decay->value,
                          layer.delta_time_step->value, layer.delta_norm->value},
                         options_.delta, options_.norm_epsilon, chunks, state);
}

torch::Tensor Llama::finish_block(const LlamaLayer& layer, const torch::Tensor& x,
                                  const torch::Tensor& attended, LoadBalance* balance) const {
  const auto added = [&](const torch::Tensor& y, const Weight* norm) {
    return scaled(norm ? rms_norm(y, norm->value, options_.norm_epsilon) : y,
                  options_.residual_scale);
  };
  const torch::Tensor output =
      add_bias(project(attended, {layer.attention_output})[0], layer.attention_output_bias);
  const torch::Tensor middle = x + added(output, layer.post_attention_norm);
  const torch::Tensor normed =
      rms_norm(middle, layer.feed_forward_norm->value, options_.norm_epsilon);
  const torch::Tensor down =
      layer.router ? mixture(layer, normed, balance) : feed_forward(layer, normed);
  return middle + added(down, layer.post_feed_forward_norm);
}

torch::Tensor Llama::feed_forward(const LlamaLayer& layer, const torch::Tensor& x) const {
  const std::vector<torch::Tensor> wide = layer.gate_up ? project(x, {layer.gate_up})[0].chunk(2, 1)
                                                        : project(x, {layer.gate, layer.up});
  const torch::Tensor gate = add_bias(wide[0], layer.gate_bias),
                      up = add_bias(wide[1], layer.up_bias);
  const torch::Tensor active = options_.architecture.is_gemma ? geglu(gate, up) : swiglu(gate, up);
  return add_bias(project(active, {layer.down})[0], layer.down_bias);
}

torch::Tensor Llama::mixture(const LlamaLayer& layer, const torch::Tensor& x,
                             LoadBalance* balance) const {
  const torch::Tensor probabilities =
      at::softmax(add_bias(project(x, {layer.router})[0], layer.router_bias), -1);
  const Routing routing = route(probabilities, options_.experts_used, balance);
  const ExpertRows rows = rows_by_expert(routing.experts, options_.shape.num_experts);
  const std::vector<torch::Tensor> wide = project(
      x.index_select(0, rows.positions), {layer.gate_experts, layer.up_experts}, rows.counts);
  const auto biased = [&](const torch::Tensor& each, const Weight* bias) {
    return bias ? each + embed_tokens(bias->value, rows.experts) : each;
  };
  const torch::Tensor gate = biased(wide[0], layer.gate_experts_bias),
                      up = biased(wide[1], layer.up_experts_bias);
  const torch::Tensor active =
      options_.architecture.has_sinks ? clamped_swiglu(gate, up) : swiglu(gate, up);
  const torch::Tensor down =
      biased(project(active, {layer.down_experts}, rows.counts)[0], layer.down_experts_bias);
  const torch::Tensor each = down.index_select(0, rows.rows).view({x.size(0), -1, x.size(1)});
  const torch::Tensor sum = (each * routing.weights.unsqueeze(2)).sum(1);
  return layer.shared_router ? sum + shared_expert(layer, x) : sum;
}

torch::Tensor Llama::shared_expert(const LlamaLayer& layer, const torch::Tensor& x) const {
  const std::vector<torch::Tensor> wide = project(x, {layer.shared_gate, layer.shared_up});
  const torch::Tensor down = project(swiglu(wide[0], wide[1]), {layer.shared_down})[0];
  return down * project(x, {layer.shared_router})[0].sigmoid();
}

torch::Tensor Llama::block(const LlamaLayer& layer, const torch::Tensor& x, const Packing& packing,
                           const torch::Tensor& rotation, const AttentionRule& rule,
                           LoadBalance* balance) const {
  const Heads all = heads(layer, x, rotation);
  return finish_block(layer, x, all.gated(attend(all.q, all.k, all.v, packing, dtype_, rule)),
                      balance);
}

torch::Tensor Llama::embedded(const torch::Tensor& tokens) const {
  const torch::Tensor rows = embed_tokens(token_embedding_->value, tokens);
  return scaled(rows, options_.embedding_scale);
}

torch::Tensor Llama::embed(const Batch& batch) {
  return embedded(batch.tokens.flatten().to(device()));
}

Llama::Rotations Llama::rotations(const torch::Tensor& positions, int64_t limit) {
  Rotations all{(is_long(limit) ? long_rope_ : rope_).rotation(positions, limit), {}};
  if (options_.window > 0) all.windows = window_rope_.rotation(positions, limit);
  return all;
}

torch::Tensor Llama::rotation_of(size_t layer, const Rotations& all) const {
  if (!options_.turns(block_of(layer))) return {};
  return rule_of(layer).window > 0 ? all.windows : all.full;
}

torch::Tensor Llama::blocks(const torch::Tensor& x, const Batch& batch) {
  const Packing packing = pack_documents(batch);
  const Rotations all = rotations(packing.positions.to(device()), packing.longest);
  DocumentChunks chunks;
  if (!options_.delta.layers.empty()) chunks = chunk_documents(packing, device());
  torch::Tensor states = x;
  const auto balance = load_balance_weight_ > 0 && options_.architecture.has_experts
                           ? std::make_shared<LoadBalance>(load_balance_weight_)
                           : nullptr;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LlamaLayer& layer = layers_[i];
    const torch::Tensor rotation = rotation_of(i, all);
    const AttentionRule rule = rule_of(i);
    Block run = [this, &layer, packing, rotation, rule, balance](const torch::Tensor& in) {
      return block(layer, in, packing, rotation, rule, balance.get());
    };
    if (has_delta_net(i))
      run = [this, &layer, chunks, balance](const torch::Tensor& in) {
        return finish_block(layer, in, delta_net(layer, in, chunks), balance.get());
      };
    states = activation_checkpointing_ ? recompute_in_backward(run, states) : run(states);
  }
  if (balance) balance->complete();
  load_balance_ = balance ? balance->loss() : 0;
  return states;
}

torch::Tensor Llama::finish(const torch::Tensor& x) const {
  const torch::Tensor normed = rms_norm(x, output_norm_->value, options_.norm_epsilon);
  return round_activations(scaled(normed, options_.output_scale),
                           (output_ ? output_ : token_embedding_)->activations);
}

torch::Tensor Llama::hidden(const Batch& batch) {
  return finish(blocks(embed(batch), batch))
      .view({batch.tokens.size(0), batch.tokens.size(1), options_.shape.width});
}

std::vector<ChannelLink> Llama::channel_links() {
  const int64_t shared = options_.num_heads / options_.num_kv_heads;
  // Of each channel that attention gives: the value's, from the head that its query heads share.
  const torch::Tensor value_rows = at::arange(options_.num_kv_heads * options_.head_size)
                                       .view({options_.num_kv_heads, options_.head_size})
                                       .repeat_interleave(shared, 0)
                                       .flatten();
  const int64_t first_value_row = (options_.num_heads + options_.num_kv_heads) * options_.head_size;
  const auto with_bias = [](Weight* weight, Weight* bias) {
    return bias ? std::vector<Weight*>{weight, bias} : std::vector<Weight*>{weight};
  };
  std::vector<ChannelLink> links;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LlamaLayer& layer = layers_[i];
    const torch::Tensor width = at::arange(options_.shape.width);
    const torch::Tensor wide = at::arange(options_.feed_forward);
    if (layer.query_key_value) {
      links.push_back({{layer.attention_norm}, {layer.query_key_value}, width});
      links.push_back(
          {{layer.query_key_value}, {layer.attention_output}, value_rows, first_value_row});
      links.push_back({{layer.feed_forward_norm}, {layer.gate_up}, width});
      links.push_back({{layer.gate_up}, {layer.down}, wide, options_.feed_forward});
      continue;
    }
    if (has_delta_net(i)) {
      links.push_back({{layer.attention_norm}, delta_projections(layer), width});
    } else {
      links.push_back({{layer.attention_norm}, {layer.query, layer.key, layer.value}, width});
      links.push_back(
          {with_bias(layer.value, layer.value_bias), {layer.attention_output}, value_rows});
    }
    if (layer.router) continue;  // a factor would have to suit the router and all experts
    links.push_back({{layer.feed_forward_norm}, {layer.gate, layer.up}, width});
    links.push_back({with_bias(layer.up, layer.up_bias), {layer.down}, wide});
  }
  return links;
}

std::unique_ptr<Model> Llama::copy() {
  std::vector<std::unique_ptr<Weight>> copies;
  for (const auto& weight : weights_)
    copies.push_back(std::make_unique<Weight>(
        Weight{weight->name,
               is_made(weight->value) ? values_of(weight->value) : weight->value.detach().clone(),
               weight->source, weight->activations}));
  auto model = std::make_unique<Llama>(options_, std::move(copies));
  model->set_compute_dtype(dtype_);
  return model;
}

std::unique_ptr<Model> load_llama(const GgufFile& file, torch::Device device,
                                  const ModelPart& part) {
  LlamaOptions options = read_llama_options(file);
  const std::vector<TensorSpec> specs = llama_tensors(options);
  options.first_block = part.first_block;
  const int64_t following = options.shape.num_layers - part.first_block;
  options.shape.num_layers = part.num_blocks < 0 ? following : part.num_blocks;
  check(options.first_block >= 0 && options.shape.num_layers <= following, file.path(),
        ": has no blocks ", part.first_block, " to ", part.first_block + part.num_blocks);
  std::vector<std::unique_ptr<Weight>> weights = load_weights(
      file, specs, device,
      [&](const std::string& name) { return is_in_part(name, options, part.ends); }, part.on_use);
  const RopeOptions plain = options.rope;
  options.rope.divisors = take_divisors(weights, kRopeDivisors);
  std::vector<float> of_short = take_divisors(weights, kRopeDivisorsShort);
  std::vector<float> of_long = take_divisors(weights, kRopeDivisorsLong);
  check(of_short.empty() == of_long.empty(), file.path(), ": has one of ", kRopeDivisorsShort,
        " and ", kRopeDivisorsLong, " only");
  // llama.cpp prefers the set that holds for every length.
  if (!of_long.empty() && options.rope.divisors.empty()) {
    options.long_rope = plain;
    options.long_rope.divisors = std::move(of_long);
    options.rope.divisors = std::move(of_short);
    options.long_from = plain.original_context;
  }
  return std::make_unique<Llama>(std::move(options), std::move(weights));
}

}  // namespace nibble
