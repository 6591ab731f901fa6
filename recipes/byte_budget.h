// nibble quantize's --target-bpw and --target-size.
#pragma once

#include <cxxopts.hpp>

#include "io/gguf.h"
#include "quant/mix/plan.h"

namespace nibble {

/// --target-bpw, --target-size, --sensitivity, --write-types.
void add_byte_budget_options(cxxopts::Options& options);
/// Throws Error (usage) for options that do not go together.
bool has_byte_budget(const cxxopts::ParseResult& arguments);
/// Throws Error (usage) for a bad value, and what plan_within() throws.
Plan byte_budget_plan(const cxxopts::ParseResult& arguments, const GgufFile& source,
                      const PlanOptions& options);

}  // namespace nibble
