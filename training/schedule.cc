#include "training/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace nibble {

double run_progress(int64_t tokens, int64_t max_tokens, double seconds, double max_minutes) {
  const double of_tokens = static_cast<double>(tokens) / static_cast<double>(max_tokens);
  const double of_time = max_minutes > 0 ? seconds / (60 * max_minutes) : 0.0;
  return std::min(1.0, std::max(of_tokens, of_time));
}

double learning_rate_factor(double progress, const OptimizerOptions& options) {
  if (progress < options.warmup) return progress / options.warmup;
  if (options.warmup >= 1) return 1;
  const double share = (progress - options.warmup) / (1 - options.warmup);
  const double cosine = 0.5 * (1 + std::cos(std::numbers::pi * share));
  return options.final_ratio + (1 - options.final_ratio) * cosine;
}

}  // namespace nibble
