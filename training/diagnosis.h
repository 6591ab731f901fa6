// Looks at a finished run: from start.gguf, the checkpoint that ships, the source and the held-out
// text, so that it can be done again at any time.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "eval/diagnosis.h"
#include "io/gguf.h"
#include "training/trainer.h"

namespace nibble {

/// Held-out tokens that output errors are measured on at most.
constexpr int64_t kDiagnosisTokens = 2048;

/// Writes `run_dir`/diagnosis.json and prints the warnings. Output errors want the source in memory
/// as float32; where that does not fit they are left out, with a note. Nothing for a run without
/// quantization, and, with a note, where start.gguf is missing (a folder of an earlier nibble) or
/// of another plan.
std::optional<Diagnosis> diagnose_run(const GgufFile& source, const TrainOptions& options,
                                      const std::string& run_dir, const TrainResult& result);

/// What is wrong with a training, one line each with what to do: no code moved, no step's held-out
/// loss below the start's, the held-out loss turned up while the training loss fell, many weights
/// clamped, many scales at their floor.
/// metrics: of all steps.
std::vector<std::string> training_warnings(const Diagnosis& diagnosis, const TrainOptions& options,
                                           const std::vector<StepMetrics>& metrics);

}  // namespace nibble
