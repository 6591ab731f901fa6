// The options of nibble quantize that are about methods which look at activations.
#pragma once

#include <cstdint>
#include <cxxopts.hpp>
#include <optional>
#include <string>

namespace nibble {

struct CalibrationArguments {
  std::string text;    // path
  int64_t tokens = 0;  // of it
};

/// --method, --calibration, --calibration-tokens.
void add_method_options(cxxopts::Options& options);

/// Of --method gptq, awq and blockwise; nothing for other methods. Throws Error (usage) for a method without
/// text, text without such a method, and flags that they do not go together with.
std::optional<CalibrationArguments> calibration_arguments(const cxxopts::ParseResult& arguments);

}  // namespace nibble
