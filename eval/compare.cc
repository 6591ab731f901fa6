#include "eval/compare.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "eval/kl_base.h"
#include "io/atomic_file.h"
#include "io/gguf.h"
#include "quant/fake/torch_device.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

/// What stays of the base once its model is gone.
struct Base {
  CompareEntry entry;
  GgufFile file;
  ModelShape shape;
  std::vector<std::vector<int32_t>> chunks;  // as they go into a model
  KlBase log_probs;
  torch::Device device;
  ActivationBackend activations;
};

std::string mismatch(const char* what, const auto& found, const CompareEntry& base,
                     const auto& wanted) {
  return concat(what, " is ", found, ", that of the base '", base.name, "' is ", wanted);
}

/// Throws unless a model can be compared with the base, token by token.
void check_comparable(const GgufFile& file, const ModelShape& shape, const Base& base) {
  const ModelShape& wanted = base.shape;
  check(shape.architecture == wanted.architecture,
        mismatch("architecture", shape.architecture, base.entry, wanted.architecture));
  check(shape.vocab_size == wanted.vocab_size,
        mismatch("vocabulary size", shape.vocab_size, base.entry, wanted.vocab_size));
  check(shape.num_layers == wanted.num_layers,
        mismatch("number of layers", shape.num_layers, base.entry, wanted.num_layers));
  check(shape.width == wanted.width, mismatch("width", shape.width, base.entry, wanted.width));
  const auto *tokens = file.metadata().find("tokenizer.ggml.tokens"),
             *base_tokens = base.file.metadata().find("tokenizer.ggml.tokens");
  check(tokens && base_tokens && *tokens == *base_tokens, "vocabulary is not that of the base '",
        base.entry.name, "' (tokenizer.ggml.tokens differ)");
}

std::vector<float> decode(const GgufTensor& tensor) {
  std::vector<float> weights(tensor.num_weights());
  decode_tensor(tensor.type, tensor.data, weights);
  return weights;
}

/// Files made from one model share their float32 tensors (norms), unless training moved them, as
/// in a file that says so of itself.
std::optional<std::string> warn_of_differences(const GgufFile& file, const CompareEntry& model,
                                               const Base& base) {
  if (model.trained || file.metadata().contains("nibble.step")) return std::nullopt;
  int64_t compared = 0, different = 0;
  std::string first;
  for (const GgufTensor& tensor : file.tensors()) {
    const GgufTensor* other = base.file.find_tensor(tensor.name);
    if (tensor.type != GgmlType::kF32 || !other || other->shape != tensor.shape) continue;
    ++compared;
    if (decode(tensor) == decode(*other)) continue;
    if (different++ == 0) first = tensor.name;
  }
  if (different == 0) return std::nullopt;
  return concat("'", model.name, "': ", different, " of ", compared,
                " unquantized tensors differ from those of the base '", base.entry.name,
                "' (first: ", first, "): the base is not its original, or they were trained");
}

double bits_per_weight(const GgufFile& file) {
  double bits = 0, weights = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    bits += 8.0 * tensor.data.size();
    weights += tensor.num_weights();
  }
  return weights > 0 ? bits / weights : 0;
}

/// Runs the base over the text; fills the comparison's base figures.
Base measure_base(const CompareEntry& entry, const std::string& text,
                  const PerplexityOptions& options, Comparison& comparison) {
  return with_frame(concat("base '", entry.name, "'"), [&] {
    GgufFile file = GgufFile::open(entry.path);
    const auto tokenizer =
        with_frame(entry.path, [&] { return Tokenizer::from_metadata(file.metadata()); });
    const auto chunks =
        with_frame(comparison.text, [&] { return perplexity_chunks(*tokenizer, text, options); });
    const torch::Device device = torch_device(options.device);
    const auto model = load_model(file, device);
    KlBase log_probs(KlBaseText{options.ctx, model->shape().vocab_size, {}});
    std::vector<TokenDivergence> own;
    const PerplexityResult result = perplexity(
        *model, chunks,
        [&](int64_t, const torch::Tensor& logits, const std::vector<int32_t>& next_tokens) {
          std::vector<uint16_t> rows = encode_base(logits);
          const auto tokens = diverge(logits, rows, next_tokens);
          own.insert(own.end(), tokens.begin(), tokens.end());
          log_probs.append(std::move(rows));
        });
    comparison.base_ppl = result.ppl;
    comparison.base_ppl_err = result.ppl_err;
    comparison.base_ppl_16bit = summarize(own).ppl_base.value;
    comparison.chunks = chunks.size();
    comparison.tokens = result.tokens;
    return Base{entry,  std::move(file),    model->shape(), chunks, std::move(log_probs),
                device, options.activations};
  });
}

ModelFigures figures_of(const std::vector<TokenDivergence>& tokens) {
  const DivergenceFigures summary = summarize(tokens);
  ModelFigures figures;
  const auto set = [](const Figure& from, double& value, double& err) {
    value = from.value;
    err = from.err;
  };
  set(summary.ppl, figures.ppl, figures.ppl_err);
  set(summary.ln_ppl_ratio, figures.ln_ppl_ratio, figures.ln_ppl_ratio_err);
  set(summary.mean_kld, figures.mean_kld, figures.mean_kld_err);
  set(summary.rms_dp, figures.rms_dp, figures.rms_dp_err);
  set(summary.same_top, figures.same_top, figures.same_top_err);
  figures.p999_kld = summary.p999_kld;
  figures.median_kld = summary.median_kld;
  figures.max_kld = summary.max_kld;
  for (const TokenDivergence& token : tokens) {
    figures.kld_per_token.push_back(token.kld);
    figures.nll_per_token.push_back(token.nll);
  }
  return figures;
}

ModelFigures measure_model(const CompareEntry& entry, const Base& base,
                           std::vector<std::string>& warnings) {
  return with_frame(concat("model '", entry.name, "'"), [&] {
    const GgufFile file = GgufFile::open(entry.path);
    const auto model = load_model(file, base.device);
    set_activation_rounding(*model, base.activations);
    with_frame(entry.path, [&] { check_comparable(file, model->shape(), base); });
    if (const auto warning = warn_of_differences(file, entry, base)) {
      warn(*warning);
      warnings.push_back(*warning);
    }
    std::vector<TokenDivergence> tokens;
    const PerplexityResult result = perplexity(
        *model, base.chunks,
        [&](int64_t chunk, const torch::Tensor& logits, const std::vector<int32_t>& next_tokens) {
          const auto scored = diverge(logits, base.log_probs.chunk(chunk), next_tokens);
          tokens.insert(tokens.end(), scored.begin(), scored.end());
        });
    ModelFigures figures = figures_of(tokens);
    figures.name = entry.name;
    figures.path = entry.path;
    figures.bytes = file.file_bytes();
    figures.bpw = bits_per_weight(file);
    figures.seconds = result.seconds;
    figures.tokens_per_second =
        base.chunks.size() * base.chunks[0].size() / std::max(result.seconds, 1e-9);
    return figures;
  });
}

PairedDifference difference(const ModelFigures& a, const ModelFigures& b) {
  std::vector<double> kld, nll;
  for (size_t i = 0; i < a.kld_per_token.size(); ++i) {
    kld.push_back(double{a.kld_per_token[i]} - double{b.kld_per_token[i]});
    nll.push_back(double{a.nll_per_token[i]} - double{b.nll_per_token[i]});
  }
  const Figure kld_mean = mean_figure(kld), nll_mean = mean_figure(nll);
  return {a.name, b.name, kld_mean.value, kld_mean.err, nll_mean.value, nll_mean.err};
}

}  // namespace

Comparison compare(const CompareEntry& base_entry, const std::vector<CompareEntry>& models,
                   const std::string& text_path, const PerplexityOptions& options) {
  Comparison comparison;
  comparison.base = base_entry.name;
  comparison.text = text_path;
  comparison.ctx = options.ctx;
  comparison.activations = options.activations;
  const Base base = measure_base(base_entry, read_file(text_path), options, comparison);
  for (const CompareEntry& entry : models)
    comparison.models.push_back(measure_model(entry, base, comparison.warnings));
  for (size_t later = 0; later < models.size(); ++later)
    for (size_t earlier = 0; earlier < later; ++earlier)
      comparison.differences.push_back(
          difference(comparison.models[later], comparison.models[earlier]));
  return comparison;
}

}  // namespace nibble
