// What training did to the codes and scales of a quantized model, tensor by tensor, from the state
// that it began with (start.gguf in the run folder: the model at step 0) to the one that ships.
// training/diagnosis.h finds it out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

/// Of one tensor; `_start` is the same figure at step 0.
struct TensorDiagnosis {
  std::string tensor, type;
  int64_t weights = 0;
  int64_t moved = 0;  // weights whose code differs from step 0's
  /// Weights outside the range of their scales: no gradient reaches them through a rounding.
  int64_t clamped_start = 0, clamped = 0;
  int64_t groups = 0;  // of weights that share a step
  /// Groups without a usable step: d at its floor of 2^-24 or 0, or a sub-scale of 0. All their
  /// weights decode to one value, or nearly.
  int64_t floored_start = 0, floored = 0;
  double mean_step = 0;  // magnitude, over the groups at step 0
  /// ||W^ - W||^2 / ||W||^2, W being the original's.
  double weight_error_start = 0, weight_error = 0;
  /// ||x (W^ - W)^T||^2 / ||x W^T||^2, x being what enters this matmul in the original on held-out
  /// text; -1: it enters none, or nothing was held out.
  double output_error_start = -1, output_error = -1;
};

struct Diagnosis {
  int64_t step = 0;                      // of the checkpoint that ships
  int64_t tokens = 0;                    // held-out tokens that the output errors are over
  std::vector<TensorDiagnosis> tensors;  // those that have codes, in the model's order
  std::vector<std::string> warnings;     // one line each, with what to do

  /// Counts added up, the step averaged over groups, errors averaged over the tensors that have
  /// them.
  TensorDiagnosis total() const;
};

/// One JSON object: step, tokens, warnings, total and tensors. Shares are fractions; an output
/// error that there is none of is null.
std::string diagnosis_json(const Diagnosis& diagnosis);
/// One line for a terminal.
std::string diagnosis_line(const Diagnosis& diagnosis);

/// part / whole; 0 of nothing is 0.
double share_of(int64_t part, int64_t whole);

}  // namespace nibble
