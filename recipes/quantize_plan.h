// The part of nibble quantize's command line that says which tensor gets which type, flag for flag
// as llama-quantize's (source: llama.cpp tools/quantize/quantize.cpp).
#pragma once

#include <cxxopts.hpp>
#include <optional>
#include <string>

#include "quant/mix/plan.h"

namespace nibble {

/// Adds the flags, and, hidden from --help, those of llama-quantize's that are refused.
void add_plan_options(cxxopts::Options& options);
/// Adds what stands without a flag: IN.gguf [OUT.gguf] TYPE [THREADS].
void add_quantize_words(cxxopts::Options& options);

struct QuantizeWords {
  std::string in, out, type;
  std::optional<int> threads;
};
/// Throws Error (usage) for too few of them and for THREADS that are no number. Without OUT.gguf it
/// is ggml-model-TYPE.gguf beside IN.gguf. by_budget: OUT.gguf must be there, TYPE must not.
QuantizeWords quantize_words(const cxxopts::ParseResult& arguments, bool by_budget);
/// Throws Error (usage) for a bad value and for a flag that is refused, with the reason.
PlanOptions plan_options(const cxxopts::ParseResult& arguments, const std::string& type);

}  // namespace nibble
