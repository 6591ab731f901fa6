// Which tensor gets which type: llama-quantize's rules (source: llama.cpp src/llama-quant.cpp),
// computed from the source file, the type name and overrides before anything else, so that QAT and
// every PTQ baseline of equal bytes share one plan.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/gguf.h"

namespace nibble {

struct PlanEntry {
  std::string tensor;
  std::vector<int64_t> shape;  // ggml order
  GgmlType source = GgmlType::kF32;
  GgmlType target = GgmlType::kF32;
  /// "Q4_0", "kept: norm", "Q6_K: output; Q8_0: rows of 576, no multiple of 256".
  std::string reason;

  /// Of tensor data, were it stored as `type`.
  int64_t bytes_as(GgmlType type) const;
};

struct Plan {
  std::string type_name;           // "Q4_K_M", as in plan_type_names()
  int file_type = 0;               // general.file_type
  std::vector<PlanEntry> entries;  // in the source's tensor order, of the layers that stay

  // What `nibble quantize` can be asked for besides; no part of plan.json.
  std::vector<std::pair<std::string, GgufValue>> metadata;  // set at the end, in this order
  std::vector<int64_t> pruned_layers;                       // that the written file lacks
  bool keep_split = false;                                  // the source's parts stay parts

  const PlanEntry* find(std::string_view tensor) const;
  /// plan.json: {"type": ..., "file_type": n, "tensors": [{"name", "shape", "source", "target",
  /// "reason"}]}
  std::string to_json() const;
  /// Throws Error, naming the tensor and the field, for text that is no plan.
  static Plan from_json(const std::string& text);
  int64_t total_bytes() const;  // of tensor data
};

struct PlanOptions {
  std::string type_name = "Q4_0";  // or a number, or COPY: every tensor keeps its type
  bool has_imatrix = false;
  bool pure = false;  // every tensor that is quantized gets the type itself
  bool allow_requantize =
      false;  // without it, a tensor that is quantized already may not change its type
  bool leave_output_tensor = false;              // output.weight keeps its type
  std::optional<GgmlType> output_type;           // of output.weight, or of the embedding tied to it
  std::optional<GgmlType> token_embedding_type;  // of token_embd.weight
  /// Regular expression (lower case, found anywhere in the name) -> type; the first that matches
  /// holds.
  std::vector<std::pair<std::string, GgmlType>> tensor_types;
  /// Metadata in the place of the source's, for the rules and in the written file.
  std::vector<std::pair<std::string, GgufValue>> metadata;
  std::vector<int64_t> pruned_layers;  // ascending, each once
  bool keep_split = false;
};

/// Throws Error (usage) for a type name that is unknown, with the nearest one, for a layer that the
/// file lacks, and for a tensor that is quantized already.
Plan make_plan(const GgufFile& source, const PlanOptions& options);
/// Throws Error (usage), naming the tensor, where the plan changes the type of one that is
/// quantized already.
void check_requantizing(const GgufFile& source, const Plan& plan);
/// The source's tensors in the types that they have in another file of the same model, which may be
/// types that nibble only decodes. Throws Error (usage) for a tensor that one of them lacks and for
/// another shape.
Plan plan_like(const GgufFile& source, const GgufFile& file);
/// The names of types that make_plan takes, COPY apart, for --help.
std::vector<std::string> plan_type_names();

}  // namespace nibble
