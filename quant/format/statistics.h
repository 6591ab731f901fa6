// A look inside one tensor's bytes: moments of its weights, how often each code and each step
// occurs. And inside two: how far apart their weights are.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "io/gguf.h"

namespace nibble {

/// Steps are counted by their magnitude with two fraction bits, so that each octave has four bins:
/// bin b holds the steps from step_bin_start(b) up to the next bin's.
constexpr int kNumStepBins = 1024;
/// Infinities and NaNs are in this bin and above.
constexpr int kFirstInfiniteStepBin = 1020;
int step_bin(float step);
float step_bin_start(int bin);

struct TensorStatistics {
  int64_t num_weights = 0;
  int64_t num_not_finite = 0;  // NaNs and infinities, which count in nothing below
  int64_t num_zero = 0;        // weights that are 0
  double sum = 0.0, sum_of_squares = 0.0;
  float min = std::numeric_limits<float>::infinity();
  float max = -std::numeric_limits<float>::infinity();
  std::array<int64_t, 256> codes{};           // how many weights have code c: at c + 128
  std::array<int64_t, kNumStepBins> steps{};  // how many groups of weights, by step_bin()

  double mean() const;
  double standard_deviation() const;
  void add(const TensorStatistics& other);
};

/// Decodes the whole tensor on all threads. Codes and steps stay 0 for F32, F16 and BF16. The sums
/// do not depend on the number of threads. Throws for a type that nibble does not decode.
TensorStatistics statistics_of(const GgufTensor& tensor);

/// How far weights are from a reference.
struct Difference {
  int64_t num_weights = 0;     // compared
  int64_t num_not_finite = 0;  // NaN or infinity on either side, which count in nothing below
  double signal = 0.0;         // sum of squares of the reference
  double noise = 0.0;          // sum of squares of the differences
  double max_abs = 0.0;        // largest difference

  /// Root mean square of the differences by that of the reference: 0 where there is no difference,
  /// infinity where only the reference is all 0.
  double relative_error() const;
  /// 10 log10(signal / noise), in decibels; infinity where there is no difference.
  double sqnr_db() const;
  bool none() const { return noise == 0.0 && num_not_finite == 0; }
  void add(const Difference& other);
};

/// Decodes the given rows of two tensors of one shape on all threads: a Difference for each.
/// Throws for a type that nibble does not decode.
std::vector<Difference> compare_rows(const GgufTensor& reference, const GgufTensor& other,
                                     std::span<const int64_t> rows);

/// How many weights of the given rows have equal codes in two tensors of one shape and type;
/// nothing where the types differ or have no codes (F32, F16, BF16). On all threads.
std::optional<int64_t> count_equal_codes(const GgufTensor& a, const GgufTensor& b,
                                         std::span<const int64_t> rows);

/// Rows, rising, that stand for a tensor: all where they hold at most `max_weights` together;
/// otherwise as many as do, at least one, each from one of equally long stretches of the tensor. A
/// hash picks the place in a stretch: at a fixed one all might be the same row of an attention
/// head.
std::vector<int64_t> sample_rows(int64_t num_rows, int64_t row_length, int64_t max_weights);

}  // namespace nibble
