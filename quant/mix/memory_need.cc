#include "quant/mix/memory_need.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "quant/mix/rules.h"

namespace nibble {
namespace {

/// llama.cpp's caches hold a multiple of so many positions.
constexpr int64_t kCellsTogether = 256;

struct Lengths {
  int64_t layers, width, feed_forward, key, value, vocab;  // key, value: of all of a layer's heads
};

/// A number that all layers share, or one for each: then the largest.
int64_t layer_number(const GgufMetadata& metadata, const std::string& key) {
  const GgufValue* value = metadata.find(key);
  check(value, "metadata key '", key, "' is missing");
  if (value_type(*value) != GgufValueType::kArray) return metadata.get_int(key);
  const std::vector<int64_t> of_each = metadata.get_ints(key);
  check(!of_each.empty(), "metadata key '", key, "' is empty");
  return *std::max_element(of_each.begin(), of_each.end());
}

Lengths lengths_of(const GgufFile& source) {
  return with_frame(source.path(), [&] {
    const GgufMetadata& metadata = source.metadata();
    const std::string architecture = metadata.get_string("general.architecture") + '.';
    const auto number = [&](const char* key) { return layer_number(metadata, architecture + key); };
    Lengths lengths{};
    lengths.layers = number("block_count");
    lengths.width = number("embedding_length");
    lengths.feed_forward =
        metadata.contains(architecture + "feed_forward_length") ? number("feed_forward_length") : 0;
    const int64_t heads = number("attention.head_count");
    check(heads > 0 && lengths.layers > 0, "a model without heads or layers");
    const int64_t kv_heads = metadata.contains(architecture + "attention.head_count_kv")
                                 ? number("attention.head_count_kv")
                                 : heads;
    const auto head_size = [&](const char* key) {
      return metadata.get_int_or(architecture + key, lengths.width / heads);
    };
    lengths.key = kv_heads * head_size("attention.key_length");
    lengths.value = kv_heads * head_size("attention.value_length");
    lengths.vocab = source.tensor("token_embd.weight").shape.back();
    return lengths;
  });
}

int64_t bytes_of(int64_t values, GgmlType type) {
  const GgmlTypeInfo& info = ggml_type_info(type);
  return values / info.block_size * info.block_bytes;
}

int64_t kv_bytes_of_a_layer(const Lengths& lengths, const ServingOptions& options,
                            int64_t positions) {
  const int64_t cells = (positions + kCellsTogether - 1) / kCellsTogether * kCellsTogether;
  return bytes_of(cells * lengths.key, options.kv_type) +
         bytes_of(cells * lengths.value, options.kv_type);
}

/// Of so many layers in a row all but the last attend to a window, 0: none does (sources: llama.cpp
/// src/models/{gemma2,gemma3,openai-moe}.cpp).
int64_t window_period(std::string_view architecture) {
  if (architecture == "gemma3") return 6;
  return architecture == "gemma2" || architecture == "gpt-oss" ? 2 : 0;
}

/// Positions whose keys and values a layer with a window keeps: llama.cpp's programs do without
/// --swa-full (source: src/llama-kv-cache-iswa.cpp).
int64_t window_positions(const GgufMetadata& metadata, const std::string& architecture,
                         const ServingOptions& options) {
  const int64_t window = metadata.get_int_or(architecture + ".attention.sliding_window",
                                             architecture == "gemma2" ? 4096 : 0);
  return window > 0 ? std::min(options.context, window + options.batch) : options.context;
}

/// What a recurrent layer keeps, however long the context: what its convolution still looks at, and
/// its state.
int64_t state_bytes(const GgufTensor& kernel, const GgufMetadata& metadata) {
  const std::string prefix = metadata.get_string("general.architecture") + ".ssm.";
  const int64_t convolution = (kernel.shape[0] - 1) * kernel.shape.back();
  return 4 * (convolution +
              metadata.get_int(prefix + "inner_size") * metadata.get_int(prefix + "state_size"));
}

std::vector<int64_t> cache_bytes_of_layers(const GgufFile& source, const Lengths& lengths,
                                           const ServingOptions& options) {
  std::vector<int64_t> layers(static_cast<size_t>(lengths.layers),
                              kv_bytes_of_a_layer(lengths, options, options.context));
  const std::string architecture = source.metadata().get_string("general.architecture");
  const auto period = static_cast<size_t>(window_period(architecture));
  const int64_t in_window = kv_bytes_of_a_layer(
      lengths, options, window_positions(source.metadata(), architecture, options));
  for (size_t i = 0; period > 0 && i < layers.size(); ++i)
    if (i % period < period - 1) layers[i] = in_window;
  for (size_t i = 0; i < layers.size(); ++i)
    if (const auto* kernel = source.find_tensor(concat("blk.", i, ".ssm_conv1d.weight")))
      layers[i] = state_bytes(*kernel, source.metadata());
  // Layers that predict further tokens attend in a context of their own, where one is asked for.
  const int64_t mtp = source.metadata().get_int_or(architecture + ".nextn_predict_layers", 0);
  for (int64_t i = 0; i < std::min(mtp, lengths.layers); ++i)
    layers[static_cast<size_t>(lengths.layers - 1 - i)] = 0;
  return layers;
}

/// What exists at once for each position of a batch: logits in float32; or what a block's
/// feed-forward part makes, and the float16 mask of all positions that attention may look at.
int64_t compute_bytes(const Lengths& lengths, const ServingOptions& options) {
  const int64_t at_output = 4 * (lengths.vocab + lengths.width);
  const int64_t in_block = 4 * (3 * lengths.feed_forward + 4 * lengths.width) + 2 * options.context;
  return std::min(options.batch, options.context) * std::max(at_output, in_block);
}

}  // namespace

MemoryNeed memory_need(const GgufFile& source, const Plan& plan, const ServingOptions& options) {
  const Lengths lengths = lengths_of(source);
  const std::vector<int64_t> caches = cache_bytes_of_layers(source, lengths, options);
  return {plan.total_bytes(), std::accumulate(caches.begin(), caches.end(), int64_t{0}),
          compute_bytes(lengths, options)};
}

int64_t layers_that_fit(const GgufFile& source, const Plan& plan, const ServingOptions& options,
                        int64_t bytes) {
  const Lengths lengths = lengths_of(source);
  std::vector<int64_t> layers = cache_bytes_of_layers(source, lengths, options);
  int64_t output = 0;
  for (const PlanEntry& entry : plan.entries) {
    const auto layer = layer_of(entry.tensor);
    const bool is_output = entry.tensor.starts_with("output");
    if (layer && *layer >= 0 && *layer < lengths.layers)
      layers[static_cast<size_t>(*layer)] += entry.bytes_as(entry.target);
    if (is_output || (entry.tensor == "token_embd.weight" && !plan.find("output.weight")))
      output += entry.bytes_as(entry.target);
  }
  int64_t left = bytes - compute_bytes(lengths, options) - output, count = 0;
  if (left < 0) return 0;
  for (auto layer = layers.rbegin(); layer != layers.rend() && *layer <= left; ++layer, ++count)
    left -= *layer;
  return count + 1;
}

}  // namespace nibble
