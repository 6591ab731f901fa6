#include "recipes/byte_budget.h"

#include <cmath>
#include <string>

#include "base/error.h"
#include "io/atomic_file.h"
#include "quant/mix/budget.h"
#include "quant/mix/rules.h"
#include "recipes/arguments.h"

namespace nibble {
namespace {

int64_t budget_bytes(const cxxopts::ParseResult& arguments, const GgufFile& source,
                     const std::vector<int64_t>& pruned_layers) {
  if (arguments.count("target-size")) return size_argument(arguments, "target-size");
  const double bpw = number_argument(arguments, "target-bpw");
  if (!(bpw > 0 && bpw <= 32))
    fail_usage("--target-bpw: wants more than 0, at most 32, found ", bpw);
  int64_t weights = 0;
  for (const GgufTensor& tensor : source.tensors())
    if (!is_in_layers(tensor.name, pruned_layers)) weights += tensor.num_weights();
  return static_cast<int64_t>(std::floor(bpw * static_cast<double>(weights) / 8));
}

}  // namespace

void add_byte_budget_options(cxxopts::Options& options) {
  cxxopts::OptionAdder add = options.add_options();
  add("target-bpw", "instead of TYPE: types chosen for the least KLD within so many bits a weight",
      cxxopts::value<std::string>(), "B");
  add("target-size", "the same within a size of tensor data, as 90M or 1.5G",
      cxxopts::value<std::string>(), "S");
  add("sensitivity", "what nibble sensitivity measured for IN", cxxopts::value<std::string>(),
      "FILE");
  add("write-types", "also write the choice, as --tensor-type-file reads it",
      cxxopts::value<std::string>(), "FILE");
}

bool has_byte_budget(const cxxopts::ParseResult& arguments) {
  const size_t budgets = arguments.count("target-bpw") + arguments.count("target-size");
  if (budgets > 1) fail_usage("--target-bpw and --target-size are two budgets; give one");
  for (const char* flag : {"sensitivity", "write-types"})
    if (arguments.count(flag) && budgets == 0)
      fail_usage("--", flag, " needs a budget: --target-bpw or --target-size");
  for (const char* flag : {"pure", "leave-output-tensor", "output-tensor-type",
                           "token-embedding-type", "tensor-type", "tensor-type-file"})
    if (arguments.count(flag) && budgets == 1)
      fail_usage("--", flag, " and a budget: the budget chooses the types of all tensors");
  return budgets == 1;
}

Plan byte_budget_plan(const cxxopts::ParseResult& arguments, const GgufFile& source,
                      const PlanOptions& options) {
  if (!arguments.count("sensitivity"))
    fail_usage("a budget needs --sensitivity FILE; make it with: nibble sensitivity ",
               quoted(source.path()), " TEXT -o FILE");
  const std::string path = arguments["sensitivity"].as<std::string>();
  const Plan plan = with_frame(path, [&] {
    return plan_within(source, Sensitivity::from_json(read_file(path)),
                       budget_bytes(arguments, source, options.pruned_layers), options);
  });
  if (arguments.count("write-types"))
    write_file(arguments["write-types"].as<std::string>(), tensor_type_file(plan));
  return plan;
}

}  // namespace nibble
