// How much memory a training run will take at its peak, counted before it loads a weight.
#pragma once

#include <cstdint>

#include "io/gguf.h"
#include "quant/mix/plan.h"
#include "training/trainer.h"

namespace nibble {

/// Bytes at the moment of a step that needs most.
struct MemoryEstimate {
  int64_t process = 0;    // resident before anything below is
  int64_t weights = 0;    // teacher, W^, masters, scales
  int64_t optimizer = 0;  // moments
  int64_t gradients = 0;  // as many as exist at that moment
  int64_t activations =
      0;               // of one micro-batch, as many as exist then; the held-out teacher's answers
  int64_t logits = 0;  // of a chunk of positions, and the copies that its matmuls take
  int64_t total() const { return process + weights + optimizer + gradients + activations + logits; }
};

/// process: resident_memory_bytes() before the run loads the model. On the CPU.
MemoryEstimate estimate_memory(const GgufFile& source, const Plan& plan,
                               const TrainOptions& options, int64_t process);

/// What it takes to ask a teacher for loss.teacher_top_k (training/teacher_cache.h), before and
/// besides what estimate_memory() counts, which is without it.
int64_t asking_bytes(const GgufFile& teacher, const TrainOptions& options);

/// Throws Error when the estimate is more than process + available, with the numbers and the
/// settings that would make the run fit.
MemoryEstimate check_memory(const GgufFile& source, const Plan& plan, const TrainOptions& options,
                            int64_t process, int64_t available);

}  // namespace nibble
