#include "recipes/quantize_calibration.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "base/error.h"
#include "recipes/arguments.h"

namespace nibble {
namespace {

constexpr RefusedFlag kRefusedFlags[] = {
    {"imatrix", "it finds out by itself which columns matter"},
    {"include-weights", "it takes no importance matrix"},
    {"exclude-weights", "it takes no importance matrix"},
    {"types", "what it makes of the activations is for one type"},
    {"prune-layers", "the activations would be those of all layers"},
};

const std::vector<std::string> kCalibrated = {"gptq", "awq", "blockwise"};
const std::vector<std::string> kMethods = {"ggml", "rtn", "search", "gptq", "awq", "blockwise"};

bool has(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

void add_method_options(cxxopts::Options& options) {
  cxxopts::OptionAdder add = options.add_options();
  add("method", "search, ggml, rtn, gptq, awq or blockwise",
      cxxopts::value<std::string>()->default_value("search"), "M");
  add("calibration",
      "of gptq, awq and blockwise: the text whose activations they look at, a file (.jsonl: its "
      "rows' \"text\")",
      cxxopts::value<std::string>(), "TEXT");
  add("calibration-tokens", "sequences of so many tokens are drawn from it",
      cxxopts::value<int64_t>()->default_value("65536"), "N");
}

std::optional<CalibrationArguments> calibration_arguments(const cxxopts::ParseResult& arguments) {
  const std::string method = arguments["method"].as<std::string>();
  if (!has(kMethods, method))
    fail_usage("unknown method '", method, "'", did_you_mean(method, kMethods),
               "; search, ggml, rtn, gptq, awq and blockwise are there");
  if (!has(kCalibrated, method)) {
    for (const char* name : {"calibration", "calibration-tokens"})
      if (arguments.count(name))
        fail_usage("--", name, " is for --method gptq, awq and blockwise, not for ", method);
    return std::nullopt;
  }
  for (const RefusedFlag& flag : kRefusedFlags)
    if (arguments.count(flag.name))
      fail_usage("--", flag.name, " does not go with --method ", method, ": ", flag.reason);
  if (arguments["device"].as<std::string>() != "cpu")
    fail_usage("--device ", arguments["device"].as<std::string>(), ": --method ", method,
               " works on the CPU");
  if (!arguments.count("calibration"))
    fail_usage("--method ", method, " looks at activations: give --calibration TEXT");
  CalibrationArguments given = {arguments["calibration"].as<std::string>(),
                                arguments["calibration-tokens"].as<int64_t>()};
  if (given.tokens < 1) fail_usage("--calibration-tokens is ", given.tokens, ", wanted 1 or more");
  if (!std::filesystem::is_regular_file(given.text))
    fail_usage("--calibration: no such file: ", given.text);
  return given;
}

}  // namespace nibble
