// What an importance matrix means for quantizing a file, by llama-quantize's rules: which entries
// count, which tensors cannot do without, and the metadata that tells of it. Source: llama.cpp
// tools/quantize/quantize.cpp, src/llama-quant.cpp.
#pragma once

#include <string>
#include <vector>

#include "quant/mix/imatrix.h"
#include "quant/mix/plan.h"

namespace nibble {

/// Drops the entries whose name has one of `exclude` in it, and, where `include` is not empty,
/// those whose name has none of it. Throws Error (usage) for a part that no entry's name has.
void select_entries(Imatrix& imatrix, const std::vector<std::string>& include,
                    const std::vector<std::string>& exclude);

/// True for the types that are useless without: they are refused where no importance is known.
bool needs_importance(const PlanEntry& entry, int file_type);

/// The importance of the tensor's columns, a row for each of its matrices (experts); nothing where
/// the imatrix (or nullptr) has no entry for it. Throws Error for an entry of another size, except
/// the token embedding's, which is then left out.
std::vector<float> importance_of(const PlanEntry& entry, const Imatrix* imatrix);

/// Throws Error, before anything is written, for what quantizing by the plan would stop at: a
/// tensor that needs importance and has none, an entry of another size, an imatrix of another
/// model.
void check_importance(const Plan& plan, const Imatrix* imatrix);

/// Lines for a person: tensors of the blocks that are quantized without importance, and experts
/// that no activation reached, whose columns therefore count alike.
std::vector<std::string> importance_notes(const Plan& plan, const Imatrix& imatrix);

/// Adds quantize.imatrix.file, .dataset, .entries_count and .chunks_count, at the end.
void set_imatrix_keys(GgufMetadata& metadata, const Imatrix& imatrix);

}  // namespace nibble
