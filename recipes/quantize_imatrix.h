// The options of nibble quantize that are about an importance matrix.
#pragma once

#include <cxxopts.hpp>
#include <optional>
#include <span>

#include "quant/format/registry.h"
#include "quant/mix/imatrix.h"
#include "quant/mix/quantize_file.h"

namespace nibble {

/// --imatrix, --include-weights, --exclude-weights.
void add_imatrix_options(cxxopts::Options& options);

/// The importance matrix that they name, with the entries that they leave; nothing where none is
/// named or no entry is left. Throws Error (usage) for options, or a method, that do not go
/// together with it.
std::optional<Imatrix> imatrix_argument(const cxxopts::ParseResult& arguments, EncodeMethod method);

/// Says what of the plans goes without importance, or could not be quantized without.
void print_importance_notes(std::span<const QuantizeOutput> outputs,
                            const std::optional<Imatrix>& imatrix);

}  // namespace nibble
