// --set of the commands that take a configuration.
#pragma once

#include <cxxopts.hpp>
#include <vector>

#include "configs/config.h"

namespace nibble {

/// The values of --set, in order. Read one by one: a list option of cxxopts would cut them at their
/// commas.
inline std::vector<ConfigOverride> config_overrides(const cxxopts::ParseResult& arguments) {
  std::vector<ConfigOverride> overrides;
  for (const cxxopts::KeyValue& argument : arguments.arguments())
    if (argument.key() == "set") overrides.push_back(argument.value());
  return overrides;
}

}  // namespace nibble
