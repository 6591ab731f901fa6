// What a configuration must fulfil beyond the type and range of each setting.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "configs/config.h"
#include "configs/field.h"

namespace nibble {

/// What the keys of a model that is trained from scratch begin with.
constexpr std::string_view kNewModel = "new_model.";

/// A setting that the rest of the configuration leaves without effect.
struct Ignored {
  std::string key, reason;
};
std::vector<Ignored> ignored_settings(const RunConfig& config);

/// Settings that need or exclude each other, and paths, which become those of what is found: in the
/// current folder, beside `origin`, or in a cache of models. Throws Error (usage) with the place of
/// the setting.
void check_config(RunConfig& config, const std::string& origin, const std::vector<GivenKey>& given);

}  // namespace nibble
