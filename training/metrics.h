// metrics.jsonl of a run: a line a step. read_metrics() (training/trainer.h) reads it back.
#pragma once

#include <cstdint>
#include <string>

#include "training/trainer.h"

namespace nibble {

std::string metrics_path(const std::string& run_dir);
/// One line, without its end.
std::string metrics_line(const StepMetrics& metrics);
/// The lines of an earlier run up to `step`, those that are whole: what a resumed run keeps.
std::string metrics_until(const std::string& run_dir, int64_t step);

}  // namespace nibble
