#include "model/llama.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "model/activation_rounding.h"
#include "model/attention.h"
#include "model/layers.h"
#include "model/recompute.h"
#include "quant/mix/rules.h"

namespace nibble {
namespace {

std::string layer_tensor(int64_t layer, const LlamaTensorRow& row) {
  return concat("blk.", layer, ".", row.name);
}

/// A positive count that the file must give.
int64_t read_count(const GgufMetadata& metadata, const std::string& key) {
  const int64_t count = metadata.get_int(key);
  check(count > 0, "key '", key, "' must be positive, is ", count);
  return count;
}

int64_t read_vocab_size(const GgufMetadata& metadata, const std::string& key) {
  if (metadata.contains(key)) return read_count(metadata, key);
  return static_cast<int64_t>(metadata.get_strings("tokenizer.ggml.tokens").size());
}

/// Keys and values of each layer, [P, G, d] of which the first `length` rows are filled.
class LlamaCache : public KvCache {
 public:
  explicit LlamaCache(int64_t layers) : keys_(layers), values_(layers) {}
  int64_t length() const override { return length_; }
  void advance(int64_t tokens) { length_ += tokens; }

  /// Stores rows length() ... of a layer; returns all rows so far, new ones included.
  std::pair<torch::Tensor, torch::Tensor> append(int64_t layer, const torch::Tensor& k,
                                                 const torch::Tensor& v) {
    return {append_rows(keys_[layer], k), append_rows(values_[layer], v)};
  }

 private:
  torch::Tensor append_rows(torch::Tensor& store, const torch::Tensor& rows) const {
    const int64_t end = length_ + rows.size(0);
    if (!store.defined() || store.size(0) < end) {
      torch::Tensor larger = torch::empty(
          {std::max<int64_t>(2 * end, 64), rows.size(1), rows.size(2)}, rows.options());
      if (length_ > 0) larger.narrow(0, 0, length_).copy_(store.narrow(0, 0, length_));
      store = larger;
    }
    store.narrow(0, length_, rows.size(0)).copy_(rows);
    return store.narrow(0, 0, end);
  }

  std::vector<torch::Tensor> keys_, values_;
  int64_t length_ = 0;
};

LlamaSizes sizes_of(const LlamaOptions& options) {
  return {options.shape.num_layers, options.shape.width,  options.shape.vocab_size,
          options.num_heads,        options.num_kv_heads, options.head_size,
          options.feed_forward};
}

const LlamaArchitecture& require_architecture(const std::string& name) {
  if (const LlamaArchitecture* found = find_llama_architecture(name)) return *found;
  std::string known;
  for (const LlamaArchitecture& each : llama_architectures())
    known += concat(known.empty() ? "" : ", ", each.name);
  fail("unknown architecture '", name, "'; nibble has ", known);
}

/// Whether a model of these blocks, with or without what is around them, has the tensor.
bool is_in_part(const std::string& name, const LlamaOptions& options, bool ends) {
  if (name == kRopeDivisors) return true;
  const std::optional<int64_t> block = layer_of(name);
  if (!block) return ends;
  return *block >= options.first_block && *block < options.first_block + options.shape.num_layers;
}

/// Of the layers with a window, whose rotation is not scaled (source: llama.cpp
/// src/models/gemma3.cpp).
void read_window(const GgufMetadata& metadata, LlamaOptions& options) {
  const std::string& architecture = options.shape.architecture;
  const std::string key = architecture + ".attention.sliding_window";
  if (options.architecture.window_period == 0 || !metadata.contains(key)) return;
  options.window = metadata.get_int(key);
  check(options.window >= 0, "key '", key, "' must not be negative, is ", options.window);
  const std::string pattern = key + "_pattern";
  check(metadata.get_int_or(pattern, options.architecture.window_period) ==
            options.architecture.window_period,
        "key '", pattern, "': nibble has windows in all but each layer number ",
        options.architecture.window_period);
  options.window_rope.dimensions = options.rope.dimensions;
  options.window_rope.pairs = options.rope.pairs;
  options.window_rope.base = metadata.get_float_or(architecture + ".rope.freq_base_swa", 10000.0);
}

/// gemma3's settings that no layer here has.
void check_gemma(const GgufMetadata& metadata, const LlamaOptions& options) {
  const std::string softcap = options.shape.architecture + ".final_logit_softcapping";
  check(metadata.get_float_or(softcap, 0) == 0, "key '", softcap,
        "' is set: nibble caps no logits");
  // llama.cpp takes another attention scale for that many layers.
  check(options.shape.num_layers != 62,
        "a gemma3 of 62 layers (27B) scales its attention otherwise");
}

torch::Tensor add_bias(const torch::Tensor& x, const Weight* bias) {
  return bias ? x + bias->value : x;
}

}  // namespace

LlamaOptions read_llama_options(const GgufFile& file) {
  return with_frame(file.path(), [&] {
    const GgufMetadata& metadata = file.metadata();
    LlamaOptions options;
    options.shape.architecture = metadata.get_string("general.architecture");
    const LlamaArchitecture& architecture = require_architecture(options.shape.architecture);
    options.architecture = architecture;
    const auto key = [&](const char* name) {
      return concat(options.shape.architecture, '.', name);
    };
    options.shape.num_layers = read_count(metadata, key("block_count"));
    options.shape.width = read_count(metadata, key("embedding_length"));
    options.shape.context_length = read_count(metadata, key("context_length"));
    options.shape.vocab_size = read_vocab_size(metadata, key("vocab_size"));
    options.feed_forward = read_count(metadata, key("feed_forward_length"));
    options.num_heads = read_count(metadata, key("attention.head_count"));
    options.num_kv_heads = metadata.get_int_or(key("attention.head_count_kv"), options.num_heads);
    options.norm_epsilon = metadata.get_float(key("attention.layer_norm_rms_epsilon"));
    check(metadata.get_int_or(key("expert_count"), 0) == 0, "key '", key("expert_count"),
          "' is set: nibble has no mixture of experts");
    check(options.num_kv_heads > 0 && options.num_heads % options.num_kv_heads == 0, "key '",
          key("attention.head_count_kv"), "' (", options.num_kv_heads, ") must divide ",
          key("attention.head_count"), " (", options.num_heads, ")");
    options.head_size =
        metadata.get_int_or(key("attention.key_length"), options.shape.width / options.num_heads);
    const int64_t value_size =
        metadata.get_int_or(key("attention.value_length"), options.head_size);
    check(options.head_size > 0 && value_size == options.head_size,
          "heads' keys and values must be equally long, are ", options.head_size, " and ",
          value_size);
    options.rope = read_rope_options(metadata, options.shape.architecture, options.head_size);
    options.rope.pairs = architecture.turns_halves ? RopePairs::kHalves : RopePairs::kNeighbours;
    check(options.rope.dimensions == options.head_size, "key '", key("rope.dimension_count"),
          "' is ", options.rope.dimensions, ", a head has ", options.head_size);
    read_window(metadata, options);
    if (architecture.is_gemma) check_gemma(metadata, options);
    return options;
  });
}

GgufMetadata llama_metadata(const LlamaOptions& options) {
  GgufMetadata metadata;
  const std::string& architecture = options.shape.architecture;
  metadata.set("general.architecture", architecture);
  const auto set = [&](const char* name, int64_t count) {
    metadata.set(concat(architecture, '.', name), static_cast<uint32_t>(count));
  };
  set("block_count", options.shape.num_layers);
  set("context_length", options.shape.context_length);
  set("embedding_length", options.shape.width);
  set("vocab_size", options.shape.vocab_size);
  set("feed_forward_length", options.feed_forward);
  set("attention.head_count", options.num_heads);
  set("attention.head_count_kv", options.num_kv_heads);
  set("rope.dimension_count", options.rope.dimensions);
  metadata.set(architecture + ".attention.layer_norm_rms_epsilon",
               static_cast<float>(options.norm_epsilon));
  metadata.set(architecture + ".rope.freq_base", static_cast<float>(options.rope.base));
  return metadata;
}

std::vector<TensorSpec> llama_tensors(const LlamaOptions& options) {
  const LlamaArchitecture& architecture = require_architecture(options.shape.architecture);
  const LlamaSizes sizes = sizes_of(options);
  const auto spec = [&](std::string name, LlamaSize row_length, LlamaSize rows, Presence presence) {
    std::vector<int64_t> shape = {sizes.of(row_length)};
    if (rows != LlamaSize::kOne) shape.push_back(sizes.of(rows));
    return TensorSpec{std::move(name), shape, presence == Presence::kRequired};
  };
  std::vector<TensorSpec> specs;
  for (const LlamaModelTensor& tensor : llama_model_tensors())
    specs.push_back(spec(tensor.name, tensor.row_length, tensor.rows, tensor.presence));
  specs.push_back({kRopeDivisors, {options.rope.dimensions / 2}, false});
  for (int64_t layer = 0; layer < sizes.num_layers; ++layer)
    for (const LlamaTensorRow& row : llama_tensor_rows())
      if (const Presence presence = row.presence(architecture); presence != Presence::kNone)
        specs.push_back(spec(layer_tensor(layer, row), row.row_length, row.rows, presence));
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
  bytes.block += (query + 2 * key + query + query) * used + options.num_heads * full;
  // Norms of heads: what goes in, and one number for each.
  const bool is_gemma = options.architecture.is_gemma;
  if (options.shape.architecture == "qwen3" || is_gemma)
    bytes.block += (query + key + options.num_heads + options.num_kv_heads) * full;
  // What goes into the norms after attention and feed-forward, and GELU's result.
  if (is_gemma) bytes.block += (2 * width + wide) * full;
  // gate and up, and their product as the last matmul takes it.
  bytes.block += 2 * wide * full + wide * used;
  return bytes;
}

Llama::Llama(LlamaOptions options, std::vector<std::unique_ptr<Weight>> weights)
    : options_(std::move(options)),
      weights_(std::move(weights)),
      rope_(options_.rope),
      window_rope_(options_.window_rope) {
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
      layers_[i].*row.slot =
          find(layer_tensor(options_.first_block + static_cast<int64_t>(i), row));
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
  const std::vector<torch::Tensor> projected =
      project(normed, {layer.query, layer.key, layer.value});
  const int64_t size = options_.head_size;
  const auto split = [&](const torch::Tensor& all, const Weight* bias, int64_t num_heads) {
    return add_bias(all, bias).view({x.size(0), num_heads, size});
  };
  const auto turned = [&](const torch::Tensor& heads, const Weight* norm) {
    if (!norm) return rotate(heads, rotation, options_.rope.pairs);
    const torch::Tensor each = rms_norm(heads.flatten(0, 1), norm->value, options_.norm_epsilon);
    return rotate(each.view_as(heads), rotation, options_.rope.pairs);
  };
  return {turned(split(projected[0], layer.query_bias, options_.num_heads), layer.query_norm),
          turned(split(projected[1], layer.key_bias, options_.num_kv_heads), layer.key_norm),
          split(projected[2], layer.value_bias, options_.num_kv_heads)};
}

torch::Tensor Llama::finish_block(const LlamaLayer& layer, const torch::Tensor& x,
                                  const torch::Tensor& attended) const {
  const auto normed_after = [&](const torch::Tensor& y, const Weight* norm) {
    return norm ? rms_norm(y, norm->value, options_.norm_epsilon) : y;
  };
  const torch::Tensor output =
      add_bias(project(attended, {layer.attention_output})[0], layer.attention_output_bias);
  const torch::Tensor middle = x + normed_after(output, layer.post_attention_norm);
  const torch::Tensor normed =
      rms_norm(middle, layer.feed_forward_norm->value, options_.norm_epsilon);
  const std::vector<torch::Tensor> wide = project(normed, {layer.gate, layer.up});
  const torch::Tensor gate = add_bias(wide[0], layer.gate_bias),
                      up = add_bias(wide[1], layer.up_bias);
  const torch::Tensor active = options_.architecture.is_gemma ? geglu(gate, up) : swiglu(gate, up);
  const torch::Tensor down = add_bias(project(active, {layer.down})[0], layer.down_bias);
  return middle + normed_after(down, layer.post_feed_forward_norm);
}

torch::Tensor Llama::block(const LlamaLayer& layer, const torch::Tensor& x, const Packing& packing,
                           const torch::Tensor& rotation, int64_t window) const {
  const Heads all = heads(layer, x, rotation);
  return finish_block(layer, x, attend(all.q, all.k, all.v, packing, dtype_, window));
}

torch::Tensor Llama::embedded(const torch::Tensor& tokens) const {
  const torch::Tensor rows = embed_tokens(token_embedding_->value, tokens);
  if (!options_.architecture.is_gemma) return rows;
  return rows * std::sqrt(static_cast<float>(options_.shape.width));
}

torch::Tensor Llama::embed(const Batch& batch) {
  return embedded(batch.tokens.flatten().to(device()));
}

torch::Tensor Llama::blocks(const torch::Tensor& x, const Batch& batch) {
  const Packing packing = pack_documents(batch);
  const torch::Tensor positions = packing.positions.to(device());
  const torch::Tensor rotation = rope_.rotation(positions, packing.longest);
  torch::Tensor of_windows;
  if (options_.window > 0) of_windows = window_rope_.rotation(positions, packing.longest);
  torch::Tensor states = x;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LlamaLayer& layer = layers_[i];
    const int64_t window = window_of(i);
    const torch::Tensor turned = window > 0 ? of_windows : rotation;
    const auto run = [this, &layer, packing, turned, window](const torch::Tensor& in) {
      return block(layer, in, packing, turned, window);
    };
    states = activation_checkpointing_ ? recompute_in_backward(run, states) : run(states);
  }
  return states;
}

torch::Tensor Llama::finish(const torch::Tensor& x) const {
  return round_activations(rms_norm(x, output_norm_->value, options_.norm_epsilon),
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
  const auto with_bias = [](Weight* weight, Weight* bias) {
    return bias ? std::vector<Weight*>{weight, bias} : std::vector<Weight*>{weight};
  };
  std::vector<ChannelLink> links;
  for (const LlamaLayer& layer : layers_) {
    const torch::Tensor width = at::arange(options_.shape.width);
    links.push_back({{layer.attention_norm}, {layer.query, layer.key, layer.value}, width});
    links.push_back(
        {with_bias(layer.value, layer.value_bias), {layer.attention_output}, value_rows});
    links.push_back({{layer.feed_forward_norm}, {layer.gate, layer.up}, width});
    links.push_back(
        {with_bias(layer.up, layer.up_bias), {layer.down}, at::arange(options_.feed_forward)});
  }
  return links;
}

std::unique_ptr<KvCache> Llama::new_cache() {
  return std::make_unique<LlamaCache>(options_.shape.num_layers);
}

torch::Tensor Llama::hidden_next(const torch::Tensor& from_anywhere, KvCache& cache) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor tokens = from_anywhere.to(device());
  LlamaCache& stored = dynamic_cast<LlamaCache&>(cache);
  const int64_t start = stored.length(), end = start + tokens.size(0);
  const torch::Tensor positions = at::arange(start, end, tokens.options());
  const torch::Tensor rotation = rope_.rotation(positions, end);
  torch::Tensor of_windows;
  if (options_.window > 0) of_windows = window_rope_.rotation(positions, end);
  torch::Tensor x = embedded(tokens);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const int64_t window = window_of(i);
    const Heads fresh = heads(layers_[i], x, window > 0 ? of_windows : rotation);
    const auto [k, v] = stored.append(i, fresh.k, fresh.v);
    x = finish_block(layers_[i], x, attend_cached(fresh.q, k, v, dtype_, window));
  }
  stored.advance(tokens.size(0));
  return finish(x);
}

std::unique_ptr<Model> Llama::copy() {
  std::vector<std::unique_ptr<Weight>> copies;
  for (const auto& weight : weights_)
    copies.push_back(std::make_unique<Weight>(
        Weight{weight->name, weight->value.detach().clone(), weight->source, weight->activations}));
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
  std::vector<std::unique_ptr<Weight>> weights =
      load_weights(file, specs, device,
                   [&](const std::string& name) { return is_in_part(name, options, part.ends); });
  const auto divisors = std::find_if(weights.begin(), weights.end(), [](const auto& weight) {
    return weight->name == kRopeDivisors;
  });
  if (divisors != weights.end()) {
    const torch::Tensor values = (*divisors)->value.cpu();
    options.rope.divisors.assign(values.data_ptr<float>(),
                                 values.data_ptr<float>() + values.numel());
    weights.erase(divisors);
  }
  return std::make_unique<Llama>(std::move(options), std::move(weights));
}

}  // namespace nibble
