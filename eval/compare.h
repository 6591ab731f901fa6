// Several models against one base on the same text: the figures llama-perplexity --kl-divergence
// prints, each with its standard error. KLD is taken through llama.cpp's 16-bit base form
// (eval/kl_base.h), in memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "eval/perplexity.h"

namespace nibble {

struct ModelFigures {
  std::string name, path;
  int64_t bytes = 0;  // file size
  double bpw = 0;     // tensor bits per weight
  double ppl = 0, ppl_err = 0;
  double ln_ppl_ratio = 0, ln_ppl_ratio_err = 0;  // ln(PPL / PPL(base)), paired over tokens
  double mean_kld = 0, mean_kld_err = 0;          // nats
  double p999_kld = 0, median_kld = 0, max_kld = 0;
  double rms_dp = 0, rms_dp_err = 0;      // fraction: RMS change of the correct token's probability
  double same_top = 0, same_top_err = 0;  // fraction
  double tokens_per_second = 0, seconds = 0;
  std::vector<float> kld_per_token;  // for paired differences and the report
  std::vector<float> nll_per_token;
};

/// KLD(a) - KLD(b) and ln(PPL(a) / PPL(b)), paired over tokens: negative where a is the better one.
struct PairedDifference {
  std::string a, b;
  double mean_kld = 0, mean_kld_err = 0;
  double ln_ppl_ratio = 0, ln_ppl_ratio_err = 0;
};

struct Comparison {
  std::string base, text;
  int64_t ctx = 0, chunks = 0, tokens = 0;
  ActivationBackend activations =
      ActivationBackend::kNone;           // whose rounding the models saw, the base excepted
  double base_ppl = 0, base_ppl_err = 0;  // float logits
  double base_ppl_16bit = 0;              // through the 16-bit base form
  std::vector<ModelFigures> models;
  std::vector<PairedDifference> differences;  // every later model (a) against every earlier one (b)
  std::vector<std::string> warnings;
};

struct CompareEntry {
  std::string name, path;
  bool trained = false;  // its unquantized tensors may differ from the base's without a warning
};

/// Models are loaded one after the other, so memory holds the base's 16-bit log-probabilities and
/// one model. Refuses a model of another vocabulary or shape; warns where tensors that are not
/// quantized differ from the base's.
Comparison compare(const CompareEntry& base, const std::vector<CompareEntry>& models,
                   const std::string& text_path, const PerplexityOptions& options);

/// One JSON object: base, text, ctx, chunks, base_ppl, ..., models: [...], differences: [...].
std::string comparison_json(const Comparison& comparison);
/// A table for a terminal, and the paired differences: those of the model named `asked` alone; by
/// default all of up to three models, and of more those of the one with the lowest KLD.
std::string comparison_table(const Comparison& comparison, const std::string& asked = "");

}  // namespace nibble
