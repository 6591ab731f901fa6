#include "model/new_model.h"

#include <cmath>
#include <numbers>
#include <random>
#include <span>
#include <vector>

#include "base/error.h"
#include "model/llama.h"

namespace nibble {
namespace {

constexpr double kDeviation = 0.02;
constexpr double kNormEpsilon = 1e-5;

/// Normally distributed values (Box and Muller 1958). Not std::normal_distribution, which gives
/// other values with every standard library.
class NormalValues {
 public:
  explicit NormalValues(uint64_t seed) : engine_(seed) {}

  float next(double deviation) {
    if (has_second_) {
      has_second_ = false;
      return static_cast<float>(deviation * second_);
    }
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    const double angle = 2 * std::numbers::pi * uniform();
    second_ = radius * std::sin(angle);
    has_second_ = true;
    return static_cast<float>(deviation * radius * std::cos(angle));
  }

 private:
  /// [0, 1): 53 bits.
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }

  std::mt19937_64 engine_;
  double second_ = 0;
  bool has_second_ = false;
};

LlamaOptions llama_options(const NewModelOptions& options) {
  for (const int64_t count : {options.width, options.feed_forward, options.layers, options.heads,
                              options.kv_heads, options.context, options.vocab_size})
    if (count < 1) fail_usage("new model: every size must be at least 1, one is ", count);
  if (options.width % options.heads != 0 || options.width / options.heads % 2 != 0)
    fail_usage("new model: ", options.heads, " heads do not cut a width of ", options.width,
               " into heads of an even size");
  if (options.heads % options.kv_heads != 0)
    fail_usage("new model: ", options.kv_heads, " heads of keys and values do not divide ",
               options.heads, " heads");
  LlamaOptions llama;
  llama.shape = {"llama", options.layers, options.width, options.vocab_size, options.context};
  llama.architecture = *find_llama_architecture("llama");
  llama.num_heads = options.heads;
  llama.num_kv_heads = options.kv_heads;
  llama.head_size = options.width / options.heads;
  llama.feed_forward = options.feed_forward;
  llama.norm_epsilon = kNormEpsilon;
  llama.rope.dimensions = llama.head_size;
  return llama;
}

double initial_deviation(const std::string& name, const NewModelOptions& options) {
  const double output = 1 / std::sqrt(static_cast<double>(options.width));
  if (name == "token_embd.weight") return options.tied ? output : 1;
  if (name == "output.weight") return output;
  const bool writes_residual =
      name.ends_with("attn_output.weight") || name.ends_with("ffn_down.weight");
  return writes_residual ? kDeviation / std::sqrt(2.0 * options.layers) : kDeviation;
}

std::vector<float> initial_weights(const GgufWriter::Tensor& tensor, const NewModelOptions& options,
                                   NormalValues& values) {
  if (tensor.shape.size() == 1) return std::vector<float>(tensor.shape[0], 1.0f);  // a norm
  const double deviation = initial_deviation(tensor.name, options);
  std::vector<float> weights(tensor.shape[0] * tensor.shape[1]);
  for (float& weight : weights) weight = values.next(deviation);
  return weights;
}

}  // namespace

void write_new_model(const std::string& path, const NewModelOptions& options,
                     const GgufMetadata& tokenizer, const std::string& name, uint64_t seed) {
  if (options.architecture != "llama")
    fail_usage("new model: unknown architecture '", options.architecture, "'; nibble has llama");
  const LlamaOptions llama = llama_options(options);
  const auto tokens = static_cast<int64_t>(tokenizer.get_strings("tokenizer.ggml.tokens").size());
  check(tokens == options.vocab_size, "new model: the tokenizer has ", tokens,
        " tokens, the model ", options.vocab_size);

  GgufMetadata metadata = llama_metadata(llama);
  metadata.set("general.type", std::string("model"));
  metadata.set("general.name", name);
  metadata.set("general.file_type", uint32_t{0});  // F32
  for (const auto& [key, value] : tokenizer.pairs()) metadata.set(key, value);

  std::vector<GgufWriter::Tensor> tensors;
  for (const TensorSpec& spec : llama_tensors(llama))
    if (spec.required || (spec.name == "output.weight" && !options.tied))
      tensors.push_back({spec.name, spec.shape, GgmlType::kF32});
  GgufWriter writer(path, metadata, tensors);
  NormalValues values(seed);
  for (const GgufWriter::Tensor& tensor : tensors) {
    const std::vector<float> weights = initial_weights(tensor, options, values);
    writer.write(std::as_bytes(std::span(weights)));
  }
  writer.finish();
}

}  // namespace nibble
