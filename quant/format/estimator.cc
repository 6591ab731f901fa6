#include "quant/format/estimator.h"

#include "base/error.h"

namespace nibble {
namespace {

struct Row {
  const char* name;
  Estimator estimator;
};

constexpr Row kRows[] = {
    {"relative", Estimator::kRelative},
    {"ste", Estimator::kSte},
    {"lsq", Estimator::kLsq},
    {"lsq+", Estimator::kLsqPlus},
    {"stretched", Estimator::kStretched},
    {"sign", Estimator::kSign},
};

}  // namespace

Estimator parse_estimator(std::string_view name) {
  std::string names;
  for (const Row& row : kRows) {
    if (row.name == name) return row.estimator;
    names += concat(names.empty() ? "" : ", ", row.name);
  }
  fail_usage("no estimator '", name, "'; there are ", names, did_you_mean(name, estimator_names()));
}

std::vector<std::string> estimator_names() {
  std::vector<std::string> names;
  for (const Row& row : kRows) names.emplace_back(row.name);
  return names;
}

}  // namespace nibble
