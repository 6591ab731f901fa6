// Tensors by name, as a configuration names several at once.
#pragma once

#include <regex>
#include <string>
#include <vector>

#include "quant/mix/plan.h"

namespace nibble {

class NamePatterns {
 public:
  /// Regular expressions (ECMAScript's), each found anywhere in a name. Throws Error (usage) for
  /// one that is none.
  explicit NamePatterns(const std::vector<std::string>& patterns);

  bool match(const std::string& name) const;
  /// Throws Error (usage), with the pattern, where one names no tensor of the plan.
  void check_all_name(const Plan& plan) const;

 private:
  std::vector<std::string> texts_;
  std::vector<std::regex> patterns_;
};

}  // namespace nibble
