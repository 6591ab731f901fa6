// What a configuration's training will take, counted before anything is loaded.
#pragma once

#include <cstdint>
#include <string>

#include "configs/config.h"
#include "training/memory_estimate.h"

namespace nibble {

struct Forecast {
  std::string type;
  int64_t weights = 0, file_bytes = 0;  // file_bytes: of tensor data
  int64_t steps = 0, tokens = 0;        // end to end
  int64_t block_tokens = 0;             // that each block sees alone before
  MemoryEstimate memory;                // besides the process itself
  // Where the teacher is asked once (loss.teacher_top_k): memory before training, and what is kept
  // on disk of each token.
  int64_t asking_bytes = 0, record_bytes = 0;
  double operations = 0;  // in matmuls with weights, multiplications and additions
};

/// The model may be a Hugging Face folder of which only config.json is there; text is not read.
/// Throws Error for a plan that cannot be written and (usage) for a new model.
Forecast make_forecast(const RunConfig& config);

/// What --dry-run says of it: lines for people, or one JSON object.
std::string forecast_text(const RunConfig& config, const Forecast& forecast);
std::string forecast_json(const RunConfig& config, const Forecast& forecast);

}  // namespace nibble
