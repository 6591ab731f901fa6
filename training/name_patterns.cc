#include "training/name_patterns.h"

#include <algorithm>

#include "base/error.h"

namespace nibble {

NamePatterns::NamePatterns(const std::vector<std::string>& patterns) : texts_(patterns) {
  for (const std::string& text : patterns) {
    try {
      patterns_.emplace_back(text);
    } catch (const std::regex_error& error) {
      fail_usage("'", text, "' is no regular expression: ", error.what());
    }
  }
}

bool NamePatterns::match(const std::string& name) const {
  return std::any_of(patterns_.begin(), patterns_.end(),
                     [&](const std::regex& pattern) { return std::regex_search(name, pattern); });
}

void NamePatterns::check_all_name(const Plan& plan) const {
  for (size_t i = 0; i < patterns_.size(); ++i)
    if (std::none_of(plan.entries.begin(), plan.entries.end(), [&](const PlanEntry& entry) {
          return std::regex_search(entry.tensor, patterns_[i]);
        }))
      fail_usage("'", texts_[i], "' names no tensor of the model");
}

}  // namespace nibble
