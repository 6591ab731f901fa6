// Perplexity as llama-perplexity measures it (source: llama.cpp tools/perplexity/perplexity.cpp):
// the text is cut into chunks of ctx tokens without overlap; each chunk's first token is replaced
// by BOS where the model adds one; the second half of each chunk is scored.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/activation_rounding.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "quant/format/device.h"

namespace nibble {

struct PerplexityOptions {
  int64_t ctx = 512;
  int64_t chunks = -1;  // -1: all
  Device device = {};   // that the models of compare() are loaded to
  /// Whose rounding of activations the models of compare() see, the base excepted.
  ActivationBackend activations = ActivationBackend::kNone;
};

/// The chunks of a text as llama-perplexity cuts them, each of ctx tokens of the text. Throws when
/// it is shorter than two chunks, as llama-perplexity does.
std::vector<std::vector<int32_t>> cut_chunks(const Tokenizer& tokenizer, const std::string& text,
                                             const PerplexityOptions& options);
/// The chunks with BOS for their first token where the model adds one: what goes into the model.
std::vector<std::vector<int32_t>> begin_with_bos(std::vector<std::vector<int32_t>> chunks,
                                                 const Tokenizer& tokenizer);
/// begin_with_bos(cut_chunks(...)).
std::vector<std::vector<int32_t>> perplexity_chunks(const Tokenizer& tokenizer,
                                                    const std::string& text,
                                                    const PerplexityOptions& options);

/// Runs one or more chunks of one length through the model, some at a time, without gradients.
/// body: called with the first one's index and the hidden states of it and those after it [chunks,
/// ctx, D].
void run_chunks(Model& model, const std::vector<std::vector<int32_t>>& chunks,
                const std::function<void(int64_t first, const torch::Tensor& hidden)>& body);

struct PerplexityResult {
  double ppl = 0, ppl_err = 0;  // err: standard error, as llama-perplexity prints
  double nll = 0, nll_err = 0;  // mean negative log-likelihood, nats per token
  int64_t tokens = 0;           // scored
  double seconds = 0;
};

/// Called with each chunk's scored logits on the CPU: [ctx - 1 - ctx/2, V] float32 (rows ctx/2 ...
/// ctx-2), and the token that follows each row.
using LogitsVisitor = std::function<void(int64_t chunk, const torch::Tensor& logits,
                                         const std::vector<int32_t>& next_tokens)>;

/// `chunks` as they go into the model, all of one length. The model computes on its device; rows of
/// logits are scored on the CPU, so that all devices share one definition. Shows progress.
PerplexityResult perplexity(Model& model, const std::vector<std::vector<int32_t>>& chunks,
                            const LogitsVisitor& visit = {});

}  // namespace nibble
