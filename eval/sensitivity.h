// Measures what quantizing one tensor alone does to a model, tensor by tensor and type by type.
#pragma once

#include <string>
#include <vector>

#include "eval/perplexity.h"
#include "quant/format/registry.h"
#include "quant/mix/sensitivity.h"

namespace nibble {

struct SensitivityOptions {
  PerplexityOptions text;  // chunks: a few, and all of them count
  EncodeMethod method = EncodeMethod::kSearch;
  /// The types to measure each tensor in, where they divide its rows. Empty: default_types().
  std::vector<GgmlType> types;
};

/// For rows of `row_length`: the K-quants and Q8_0 where 256 divides them, else the types of 32 and
/// 64 weights.
std::vector<GgmlType> default_types(int64_t row_length);

/// Measures every tensor that llama-quantize would quantize. `path` is where the figures are kept,
/// written after each tensor: figures of the same measurement (fingerprint) that are there already
/// are taken over, so that a stopped one goes on. Shows progress. Throws Error for a text too
/// short and for a model that cannot be loaded.
Sensitivity measure_sensitivity(const std::string& model_path, const std::string& text_path,
                                const SensitivityOptions& options, const std::string& path);

}  // namespace nibble
