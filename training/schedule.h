// The learning rate as a share of its peak: linear warm-up, then half a cosine down to final_ratio.
#pragma once

#include <cstdint>

#include "training/trainer.h"

namespace nibble {

/// How far the run is, 0 to 1: the share of its tokens or of its time, whichever is further.
/// max_minutes 0: no limit on time.
double run_progress(int64_t tokens, int64_t max_tokens, double seconds, double max_minutes);

/// progress: at the end of the step that is about to be taken, so that the first step is not lost
/// to a rate of zero.
double learning_rate_factor(double progress, const OptimizerOptions& options);

}  // namespace nibble
