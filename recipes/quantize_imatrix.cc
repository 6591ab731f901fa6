#include "recipes/quantize_imatrix.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "quant/mix/importance.h"

namespace nibble {
namespace {

using Names = std::vector<std::string>;

Names names_or_none(const cxxopts::ParseResult& arguments, const std::string& option) {
  return arguments.count(option) ? arguments[option].as<Names>() : Names();
}

std::vector<std::string> notes_of(const Plan& plan, const std::optional<Imatrix>& imatrix) {
  if (imatrix) return importance_notes(plan, *imatrix);
  const auto first =
      std::find_if(plan.entries.begin(), plan.entries.end(),
                   [&](const PlanEntry& entry) { return needs_importance(entry, plan.file_type); });
  if (first == plan.entries.end()) return {};
  return {concat("this will need --imatrix FILE: ", first->tensor, " becomes ",
                 type_name(first->target), ", which is garbage without")};
}

}  // namespace

void add_imatrix_options(cxxopts::Options& options) {
  cxxopts::OptionAdder add = options.add_options();
  add("imatrix",
      "importance matrix: which columns of each tensor's input matter. Made by nibble imatrix or "
      "llama-imatrix, GGUF or .dat",
      cxxopts::value<std::string>(), "FILE");
  add("include-weights", "use it only for tensors whose name has NAME in it; may be repeated",
      cxxopts::value<Names>(), "NAME");
  add("exclude-weights", "do not use it for tensors whose name has NAME in it; may be repeated",
      cxxopts::value<Names>(), "NAME");
}

std::optional<Imatrix> imatrix_argument(const cxxopts::ParseResult& arguments,
                                        EncodeMethod method) {
  const Names include = names_or_none(arguments, "include-weights");
  const Names exclude = names_or_none(arguments, "exclude-weights");
  if (!include.empty() && !exclude.empty())
    fail_usage("--include-weights and --exclude-weights do not go together");
  if (!arguments.count("imatrix")) {
    if (!include.empty() || !exclude.empty())
      fail_usage("--", include.empty() ? "exclude" : "include", "-weights needs --imatrix FILE");
    return std::nullopt;
  }
  if (method == EncodeMethod::kRtn)
    fail_usage("--method rtn weighs no errors, so --imatrix has no meaning for it");
  Imatrix imatrix = Imatrix::open(arguments["imatrix"].as<std::string>());
  select_entries(imatrix, include, exclude);
  if (imatrix.entries.empty()) return std::nullopt;
  return imatrix;
}

void print_importance_notes(std::span<const QuantizeOutput> outputs,
                            const std::optional<Imatrix>& imatrix) {
  std::set<std::string> said;  // most notes hold for every type
  for (const QuantizeOutput& output : outputs)
    for (const std::string& line : notes_of(output.plan, imatrix))
      if (said.insert(line).second) note(line);
}

}  // namespace nibble
