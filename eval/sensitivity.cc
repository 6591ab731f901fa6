#include "eval/sensitivity.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <span>

#include "base/checksum.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "io/atomic_file.h"
#include "io/gguf.h"
#include "model/layers.h"
#include "quant/fake/torch_device.h"
#include "quant/format/rows.h"
#include "quant/mix/plan.h"
#include "quant/mix/quantize_file.h"
#include "quant/mix/rules.h"

namespace nibble {
namespace {

using Chunks = std::vector<std::vector<int32_t>>;

/// A model beside what it said before any tensor was touched.
class Reference {
 public:
  Reference(Model& model, const Chunks& chunks) : model_(model), chunks_(chunks) {
    visit([&](const torch::Tensor& log_probs) { log_probs_.push_back(log_probs); });
  }

  /// Mean over all positions of KL(before || now), nats.
  double divergence() const {
    double sum = 0;
    int64_t positions = 0;
    size_t chunk = 0;
    visit([&](const torch::Tensor& log_probs) {
      const torch::Tensor each = at::kl_div(log_probs, log_probs_[chunk++], at::Reduction::None,
                                            /*log_target=*/true);
      sum += each.sum(torch::kFloat64).item<double>();
      positions += log_probs.size(0);
    });
    return sum / static_cast<double>(positions);
  }

 private:
  /// Calls see() with each chunk's log-probabilities, [T, V] float32. Not the 16-bit base form of
  /// eval/kl_base.h: one tensor's KLD can be below its steps.
  void visit(const std::function<void(const torch::Tensor&)>& see) const {
    run_chunks(model_, chunks_, [&](int64_t, const torch::Tensor& hidden) {
      for (const torch::Tensor& states : hidden.unbind())
        see(at::log_softmax(model_.logits_of(states), -1));
    });
  }

  Model& model_;
  const Chunks& chunks_;
  std::vector<torch::Tensor> log_probs_;
};

/// Puts a tensor's rounded values in its place while it lives.
class Rounded {
 public:
  Rounded(Weight& weight, const torch::Tensor& original, GgmlType type, EncodeMethod method)
      : weight_(weight), original_(original) {
    const torch::Tensor values = original.cpu().contiguous();
    const std::span<const float> from(values.const_data_ptr<float>(), values.numel());
    const auto bytes = encode_tensor(type, from, values.size(-1), {}, method);
    torch::Tensor rounded = torch::empty_like(values);
    decode_tensor(type, bytes,
                  {rounded.mutable_data_ptr<float>(), static_cast<size_t>(rounded.numel())});
    weight_.value.copy_(rounded);
  }
  ~Rounded() { weight_.value.copy_(original_); }
  Rounded(const Rounded&) = delete;
  Rounded& operator=(const Rounded&) = delete;

 private:
  Weight& weight_;
  const torch::Tensor& original_;
};

std::string fingerprint(const GgufFile& file, const Chunks& chunks, EncodeMethod method) {
  Checksum sum;
  for (const GgufTensor& tensor : file.tensors()) {
    sum.update(std::as_bytes(std::span(tensor.name)));
    sum.update(tensor.data);
  }
  for (const auto& chunk : chunks) sum.update(std::as_bytes(std::span(chunk)));
  return concat(sum.value(), "-", chunks.size(), "x", chunks.front().size(), "-",
                method_name(method));
}

std::vector<GgmlType> types_for(const SensitivityOptions& options, int64_t row_length) {
  std::vector<GgmlType> types;
  for (const GgmlType type : options.types.empty() ? default_types(row_length) : options.types)
    if (row_length % require_format(type).block_size == 0) types.push_back(type);
  return types;
}

/// What is there of the same measurement; anything else is named and replaced.
Sensitivity continued(const std::string& path, Sensitivity fresh) {
  if (!std::filesystem::exists(path)) return fresh;
  Sensitivity there = with_frame(path, [&] { return Sensitivity::from_json(read_file(path)); });
  if (there.fingerprint == fresh.fingerprint) return there;
  warn(path, ": holds figures of another model, text or method; they are replaced");
  return fresh;
}

TensorSensitivity& tensor_in(Sensitivity& all, const PlanEntry& entry) {
  for (TensorSensitivity& tensor : all.tensors)
    if (tensor.tensor == entry.tensor) return tensor;
  return all.tensors.emplace_back(TensorSensitivity{entry.tensor, entry.shape, {}});
}

/// The tensors that llama-quantize would quantize.
std::vector<PlanEntry> quantizable(const GgufFile& file) {
  PlanOptions options;
  options.type_name = "Q8_0";
  options.pure = options.allow_requantize = true;
  std::vector<PlanEntry> entries;
  for (PlanEntry& entry : make_plan(file, options).entries)
    if (is_quantized(entry.target)) entries.push_back(std::move(entry));
  return entries;
}

}  // namespace

std::vector<GgmlType> default_types(int64_t row_length) {
  const std::vector<std::string_view> names =
      row_length % 256 == 0
          ? std::vector<std::string_view>{"Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"}
          : std::vector<std::string_view>{"Q2_0", "Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0"};
  std::vector<GgmlType> types;
  for (const std::string_view name : names)
    if (const Format* format = find_format(name)) types.push_back(format->type);
  return types;
}

Sensitivity measure_sensitivity(const std::string& model_path, const std::string& text_path,
                                const SensitivityOptions& options, const std::string& path) {
  const torch::NoGradGuard no_grad;
  const GgufFile file = GgufFile::open(model_path);
  const auto tokenizer =
      with_frame(model_path, [&] { return Tokenizer::from_metadata(file.metadata()); });
  const Chunks chunks = with_frame(
      text_path, [&] { return perplexity_chunks(*tokenizer, read_file(text_path), options.text); });
  Sensitivity all =
      continued(path, {model_path, text_path, fingerprint(file, chunks, options.method), {}});
  const auto model = load_model(file, torch_device(options.text.device));
  const Reference reference(*model, chunks);
  const std::vector<PlanEntry> entries = quantizable(file);
  Progress progress("sensitivity", static_cast<int64_t>(entries.size()), "tensors");
  for (size_t i = 0; i < entries.size(); ++i) {
    Weight* weight = model->find_weight(entries[i].tensor);
    if (!weight) continue;  // of the file, not of the model: nothing depends on it
    TensorSensitivity& tensor = tensor_in(all, entries[i]);
    const torch::Tensor original = weight->value.clone();
    bool measured = false;
    for (const GgmlType type : types_for(options, entries[i].shape[0])) {
      if (tensor.find(type)) continue;
      const Rounded rounded(*weight, original, type, options.method);
      tensor.kld.emplace_back(type, reference.divergence());
      measured = true;
    }
    if (measured) write_file(path, all.to_json());
    progress.update(static_cast<int64_t>(i) + 1, entries[i].tensor);
  }
  return all;
}

}  // namespace nibble
