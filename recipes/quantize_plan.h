// The part of nibble quantize's command line that says which tensor gets which type, flag for flag
// as llama-quantize's (source: llama.cpp tools/quantize/quantize.cpp).
#pragma once

#include <cxxopts.hpp>
#include <optional>
#include <string>
#include <vector>

#include "quant/mix/plan.h"

namespace nibble {

/// Adds the flags, and, hidden from --help, those of llama-quantize's that are refused.
void add_plan_options(cxxopts::Options& options);
/// Adds --types, and what stands without a flag: IN.gguf [OUT.gguf] TYPE [THREADS].
void add_quantize_words(cxxopts::Options& options);

struct QuantizeWords {
  struct File {
    std::string type, path;
  };
  std::string in;
  std::string folder;  // OUT_DIR, for --types; "" without
  std::vector<File> files;
  std::optional<int> threads;
};
/// Throws Error (usage) for too few words, for THREADS that are no number, and for --types that are
/// unknown, named twice or go with another flag. Without OUT.gguf it is ggml-model-TYPE.gguf beside
/// IN.gguf. by_budget: OUT.gguf must be there, TYPE must not, and the file's type is "". --types:
/// the same, with OUT_DIR, and the files are OUT_DIR/NAME-TYPE.gguf, NAME as of model_name().
QuantizeWords quantize_words(const cxxopts::ParseResult& arguments, bool by_budget);
/// All but the type. Throws Error (usage) for a bad value and for a flag that is refused, with the
/// reason.
PlanOptions plan_options(const cxxopts::ParseResult& arguments);

}  // namespace nibble
