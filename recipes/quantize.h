// What nibble quantize does with and without LibTorch.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "quant/mix/quantize_file.h"
#include "recipes/quantize_calibration.h"
#include "recipes/quantize_report.h"

namespace nibble {

/// A command line, read, checked and planned.
struct QuantizeJob {
  GgufFile source;
  std::vector<QuantizeOutput> outputs;
  std::string method;  // "gptq"
  Device device;
  std::optional<Imatrix> imatrix;
  std::optional<CalibrationArguments> calibration;  // where the method looks at activations
  QuantizeReport report;
};

/// Nothing when there is nothing left to do: help or a dry run. Throws Error.
std::optional<QuantizeJob> quantize_job(int argc, char** argv);

}  // namespace nibble
