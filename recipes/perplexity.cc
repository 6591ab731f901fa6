// nibble perplexity: how well a model predicts a text, and how far it is from a base, as
// llama-perplexity measures both.
#include "eval/perplexity.h"

#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/memory.h"
#include "eval/compare.h"
#include "eval/kl_base.h"
#include "io/atomic_file.h"
#include "io/gguf.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "quant/fake/torch_device.h"
#include "recipes/activations_argument.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

using Chunks = std::vector<std::vector<int32_t>>;

constexpr const char* kExamples =
    "\nThe text is cut into chunks of --ctx tokens, and the second half of each is scored. The "
    "base "
    "file is\nllama-perplexity's own: either program reads what the other wrote. With "
    "--kl-divergence the text's\ntokens come from the base file; a TEXT that is given must be that "
    "text.\n"
    "\nexamples:\n"
    "  nibble perplexity model.gguf wiki.test.raw --chunks 16\n"
    "  nibble perplexity f32.gguf wiki.test.raw --kl-divergence-base base.kld     writes the base\n"
    "  nibble perplexity q4_0.gguf --kl-divergence-base base.kld --kl-divergence  reads it\n";

struct Request {
  std::string model, text, base_path;
  PerplexityOptions options;
  Device device;
  bool divergence = false, json = false;
};

std::optional<Request> parse(int argc, char** argv) {
  cxxopts::Options options("nibble perplexity", "How well a model predicts a text");
  options.positional_help("MODEL TEXT")
      .add_options("positional")("model", "GGUF file", cxxopts::value<std::string>())(
          "text", "text file", cxxopts::value<std::string>());
  options.add_options()("c,ctx", "tokens per chunk",
                        cxxopts::value<int64_t>()->default_value("512"))(
      "chunks", "chunks to measure; -1: all", cxxopts::value<int64_t>()->default_value("-1"))(
      "kl-divergence-base",
      "file of the base's log-probabilities: written, or read with --kl-divergence",
      cxxopts::value<std::string>())("kl-divergence", "measure the divergence from that base")(
      "json", "one JSON object on stdout");
  add_device_option(options, "computes");
  add_activations_option(options);
  options.parse_positional({"model", "text"});
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return std::nullopt;
  Request request;
  request.device = device_argument(*arguments);
  request.options.activations = activations_argument(*arguments);
  request.divergence = arguments->count("kl-divergence") > 0;
  request.json = arguments->count("json") > 0;
  request.model = model_argument(*arguments, "model", "MODEL");
  if (!request.divergence || arguments->count("text") > 0)
    request.text = required(*arguments, "text", "TEXT");
  if (arguments->count("kl-divergence-base") > 0)
    request.base_path = (*arguments)["kl-divergence-base"].as<std::string>();
  if (request.divergence && request.base_path.empty())
    fail_usage("--kl-divergence needs --kl-divergence-base FILE");
  if (request.divergence && arguments->count("ctx") + arguments->count("chunks") > 0)
    fail_usage(
        "--kl-divergence takes ctx and chunks from the base file; leave --ctx and --chunks out");
  request.options.ctx = (*arguments)["ctx"].as<int64_t>();
  request.options.chunks = (*arguments)["chunks"].as<int64_t>();
  return request;
}

Chunks read_chunks(const Request& request, const PerplexityOptions& options,
                   const Tokenizer& tokenizer) {
  return with_frame(request.text,
                    [&] { return cut_chunks(tokenizer, read_file(request.text), options); });
}

struct Measurement {
  PerplexityOptions options;
  PerplexityResult result;
  std::optional<DivergenceFigures> divergence;
};

/// Perplexity alone, writing the base file where one is named.
Measurement measure(const Request& request, Model& model, const Tokenizer& tokenizer) {
  const Chunks chunks = read_chunks(request, request.options, tokenizer);
  std::optional<KlBaseWriter> writer;
  LogitsVisitor visit;
  if (!request.base_path.empty()) {
    writer.emplace(request.base_path,
                   KlBaseText{request.options.ctx, model.shape().vocab_size, chunks});
    visit = [&](int64_t, const torch::Tensor& logits, const std::vector<int32_t>&) {
      writer->write(logits);
    };
  }
  const PerplexityResult result = perplexity(model, begin_with_bos(chunks, tokenizer), visit);
  if (writer) writer->finish();
  return {request.options, result, std::nullopt};
}

Measurement measure_divergence(const Request& request, Model& model, const Tokenizer& tokenizer) {
  const KlBase base = KlBase::open(request.base_path);
  const KlBaseText& text = base.text();
  const PerplexityOptions options = {text.ctx, static_cast<int64_t>(text.chunks.size())};
  check(text.vocab == model.shape().vocab_size, request.base_path, " has a vocabulary of ",
        text.vocab, ", the model ", model.shape().vocab_size);
  if (!request.text.empty())
    check(read_chunks(request, options, tokenizer) == text.chunks, request.base_path,
          " was not made from ", request.text, ": their tokens differ");
  std::vector<TokenDivergence> tokens;
  const PerplexityResult result =
      perplexity(model, begin_with_bos(text.chunks, tokenizer),
                 [&](int64_t chunk, const torch::Tensor& logits, const std::vector<int32_t>& next) {
                   const auto scored = diverge(logits, base.chunk(chunk), next);
                   tokens.insert(tokens.end(), scored.begin(), scored.end());
                 });
  return {options, result, summarize(tokens)};
}

double tokens_per_second(const Measurement& measured) {
  const int64_t scored = measured.options.ctx - 1 - measured.options.ctx / 2;
  return measured.result.tokens / scored * measured.options.ctx /
         std::max(measured.result.seconds, 1e-9);
}

void print_json(const Measurement& measured) {
  const PerplexityResult& result = measured.result;
  const int64_t scored = measured.options.ctx - 1 - measured.options.ctx / 2;
  nlohmann::ordered_json json = {{"ppl", result.ppl},
                                 {"ppl_err", result.ppl_err},
                                 {"nll", result.nll},
                                 {"nll_err", result.nll_err},
                                 {"tokens", result.tokens},
                                 {"ctx", measured.options.ctx},
                                 {"chunks", result.tokens / scored},
                                 {"seconds", result.seconds},
                                 {"tokens_per_second", tokens_per_second(measured)},
                                 {"peak_bytes", peak_memory_bytes()}};
  if (measured.divergence) {
    const DivergenceFigures& d = *measured.divergence;
    const auto add = [&](const std::string& key, const Figure& figure) {
      json[key] = figure.value;
      json[key + "_err"] = figure.err;
    };
    add("base_ppl", d.ppl_base);
    add("ln_ppl_ratio", d.ln_ppl_ratio);
    add("mean_kld", d.mean_kld);
    json["median_kld"] = d.median_kld;
    json["p999_kld"] = d.p999_kld;
    json["max_kld"] = d.max_kld;
    add("rms_dp", d.rms_dp);
    add("same_top", d.same_top);
  }
  std::printf("%s\n", json.dump(2).c_str());
}

void print_text(const Measurement& measured) {
  const PerplexityResult& result = measured.result;
  std::printf("PPL %.4f +/- %.5f  (%ld tokens scored, %.0f tokens/s)\n", result.ppl, result.ppl_err,
              static_cast<long>(result.tokens), tokens_per_second(measured));
  if (!measured.divergence) return;
  const DivergenceFigures& d = *measured.divergence;
  std::printf("PPL of the base     %.6f +/- %.6f\n", d.ppl_base.value, d.ppl_base.err);
  std::printf("ln(PPL / PPL base)  %.6f +/- %.6f\n", d.ln_ppl_ratio.value, d.ln_ppl_ratio.err);
  std::printf("mean KLD            %.6f +/- %.6f\n", d.mean_kld.value, d.mean_kld.err);
  std::printf("median KLD          %.6f\n", d.median_kld);
  std::printf("99.9%% KLD           %.6f\n", d.p999_kld);
  std::printf("maximum KLD         %.6f\n", d.max_kld);
  std::printf("RMS dp              %.3f +/- %.3f %%\n", 100 * d.rms_dp.value, 100 * d.rms_dp.err);
  std::printf("same top            %.3f +/- %.3f %%\n", 100 * d.same_top.value,
              100 * d.same_top.err);
}

}  // namespace

int run_perplexity(int argc, char** argv) {
  const std::optional<Request> request = parse(argc, argv);
  if (!request) return 0;
  const GgufFile file = GgufFile::open(request->model);
  const auto tokenizer =
      with_frame(request->model, [&] { return Tokenizer::from_metadata(file.metadata()); });
  const auto model = load_model(file, torch_device(request->device));
  set_activation_rounding(*model, request->options.activations);
  const Measurement measured = request->divergence
                                   ? measure_divergence(*request, *model, *tokenizer)
                                   : measure(*request, *model, *tokenizer);
  request->json ? print_json(measured) : print_text(measured);
  return 0;
}

}  // namespace nibble
