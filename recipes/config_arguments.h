// --set and --dry-run of the commands that take a configuration.
#pragma once

#include <cstdio>
#include <cxxopts.hpp>
#include <vector>

#include "configs/config.h"
#include "configs/forecast.h"

namespace nibble {

/// The values of --set, in order. Read one by one: a list option of cxxopts would cut them at their
/// commas.
inline std::vector<ConfigOverride> config_overrides(const cxxopts::ParseResult& arguments) {
  std::vector<ConfigOverride> overrides;
  for (const cxxopts::KeyValue& argument : arguments.arguments())
    if (argument.key() == "set") overrides.push_back(argument.value());
  return overrides;
}

/// Does what --dry-run wants; false where it was not given.
inline bool forecast_instead(const cxxopts::ParseResult& arguments, const RunConfig& config) {
  if (arguments.count("dry-run") == 0) return false;
  const Forecast forecast = make_forecast(config);
  std::fputs((arguments.count("json") > 0 ? forecast_json(config, forecast)
                                          : forecast_text(config, forecast))
                 .c_str(),
             stdout);
  return true;
}

}  // namespace nibble
