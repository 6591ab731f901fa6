// What nibble quantize prints of the files that it writes, or would write.
#pragma once

#include <span>
#include <string>

#include "quant/mix/quantize_file.h"

namespace nibble {

struct QuantizeReport {
  bool json;  // instead of lines for a person
  bool many;  // the JSON is a list; lines begin with the file's name
};

/// Each tensor's type and the sizes, and warns of what quantizing would stop at.
void print_plans(std::span<const QuantizeOutput> outputs, const QuantizeReport& report);
/// Types, bytes and time of the files that were written, which stats tell of in their order.
void print_stats(std::span<const QuantizeOutput> outputs, std::span<const QuantizeStats> stats,
                 const std::string& method, const QuantizeReport& report);

}  // namespace nibble
