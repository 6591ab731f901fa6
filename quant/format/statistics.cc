#include "quant/format/statistics.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/float16.h"
#include "base/threads.h"
#include "quant/format/registry.h"

namespace nibble {
namespace {

/// Weights that are decoded at a time, into the first-level cache; a multiple of every block size.
constexpr int64_t kSlabWeights = 1 << 12;
/// Weights that a thread takes at a time; a multiple of the former.
constexpr int64_t kPieceWeights = 1 << 20;

constexpr int kFractionBits = 21;  // that a bin of steps leaves out, of float32's 23

void add_weights(std::span<const float> weights, TensorStatistics& statistics) {
  statistics.num_weights += static_cast<int64_t>(weights.size());
  for (const float w : weights) {
    if (!std::isfinite(w)) {
      ++statistics.num_not_finite;
      continue;
    }
    statistics.num_zero += w == 0.0f;
    statistics.sum += w;
    statistics.sum_of_squares += static_cast<double>(w) * w;
    statistics.min = std::min(statistics.min, w);
    statistics.max = std::max(statistics.max, w);
  }
}

/// Blocks [begin, end) of a tensor.
TensorStatistics statistics_of_blocks(const Format& format, const std::byte* blocks, int64_t begin,
                                      int64_t end) {
  TensorStatistics statistics;
  std::vector<float> values(kSlabWeights);
  std::vector<int8_t> codes(kSlabWeights);
  const int64_t slab = kSlabWeights / format.block_size;
  for (int64_t first = begin; first < end; first += slab) {
    const int64_t count = std::min(slab, end - first);
    const auto num_weights = static_cast<size_t>(count * format.block_size);
    const std::byte* from = blocks + first * format.block_bytes;
    format.decode(from, values.data(), count);
    add_weights(std::span(values).first(num_weights), statistics);
    if (!format.codes_of) continue;
    format.codes_of(from, codes.data(), count);
    for (size_t i = 0; i < num_weights; ++i) ++statistics.codes[codes[i] + 128];
    format.steps_of(from, values.data(), count);
    const size_t num_steps = num_weights / static_cast<size_t>(format.group_size);
    for (size_t i = 0; i < num_steps; ++i) ++statistics.steps[step_bin(values[i])];
  }
  return statistics;
}

void add_difference(const float* reference, const float* other, int64_t count,
                    Difference& difference) {
  difference.num_weights += count;
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(reference[i]) || !std::isfinite(other[i])) {
      ++difference.num_not_finite;
      continue;
    }
    const double x = reference[i], error = other[i] - x;
    difference.signal += x * x;
    difference.noise += error * error;
    difference.max_abs = std::max(difference.max_abs, std::abs(error));
  }
}

/// One row of a tensor, decoded slab by slab.
struct RowReader {
  const GgufTensor& tensor;
  const Format& format = require_decoder(tensor.type);
  std::vector<float> values = std::vector<float>(kSlabWeights);

  const float* read(int64_t row, int64_t first, int64_t count) {
    const int64_t block = (row * tensor.row_length() + first) / format.block_size;
    format.decode(tensor.data.data() + block * format.block_bytes, values.data(),
                  count / format.block_size);
    return values.data();
  }
};

}  // namespace

int step_bin(float step) {
  return static_cast<int>((bits_of(step) & 0x7fffffffu) >> kFractionBits);
}
float step_bin_start(int bin) { return float_of(static_cast<uint32_t>(bin) << kFractionBits); }

double TensorStatistics::mean() const {
  const int64_t count = num_weights - num_not_finite;
  return count == 0 ? 0.0 : sum / static_cast<double>(count);
}

double TensorStatistics::standard_deviation() const {
  const int64_t count = num_weights - num_not_finite;
  if (count == 0) return 0.0;
  return std::sqrt(std::max(0.0, sum_of_squares / static_cast<double>(count) - mean() * mean()));
}

void TensorStatistics::add(const TensorStatistics& other) {
  num_weights += other.num_weights;
  num_not_finite += other.num_not_finite;
  num_zero += other.num_zero;
  sum += other.sum;
  sum_of_squares += other.sum_of_squares;
  min = std::min(min, other.min);
  max = std::max(max, other.max);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] += other.codes[i];
  for (size_t i = 0; i < steps.size(); ++i) steps[i] += other.steps[i];
}

TensorStatistics statistics_of(const GgufTensor& tensor) {
  const Format& format = require_decoder(tensor.type);
  const int64_t num_blocks = tensor.num_weights() / format.block_size;
  const int64_t piece = kPieceWeights / format.block_size;
  std::vector<TensorStatistics> parts(static_cast<size_t>((num_blocks + piece - 1) / piece));
  parallel_for(static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      parts[i] = statistics_of_blocks(format, tensor.data.data(), i * piece,
                                      std::min(num_blocks, (i + 1) * piece));
  });
  TensorStatistics statistics;
  for (const TensorStatistics& part : parts) statistics.add(part);
  return statistics;
}

double Difference::relative_error() const { return noise == 0.0 ? 0.0 : std::sqrt(noise / signal); }

double Difference::sqnr_db() const {
  return noise == 0.0 ? std::numeric_limits<double>::infinity() : 10.0 * std::log10(signal / noise);
}

void Difference::add(const Difference& other) {
  num_weights += other.num_weights;
  num_not_finite += other.num_not_finite;
  signal += other.signal;
  noise += other.noise;
  max_abs = std::max(max_abs, other.max_abs);
}

std::vector<Difference> compare_rows(const GgufTensor& reference, const GgufTensor& other,
                                     std::span<const int64_t> rows) {
  require_decoder(reference.type);  // before there are threads
  require_decoder(other.type);
  const int64_t length = reference.row_length();
  std::vector<Difference> differences(rows.size());
  const int64_t grain = std::max<int64_t>(1, kPieceWeights / 16 / length);
  parallel_for(static_cast<int64_t>(rows.size()), grain, [&](int64_t begin, int64_t end) {
    RowReader left{reference}, right{other};
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t first = 0; first < length; first += kSlabWeights) {
        const int64_t count = std::min(kSlabWeights, length - first);
        add_difference(left.read(rows[i], first, count), right.read(rows[i], first, count), count,
                       differences[i]);
      }
    }
  });
  return differences;
}

std::optional<int64_t> count_equal_codes(const GgufTensor& a, const GgufTensor& b,
                                         std::span<const int64_t> rows) {
  const Format& format = require_decoder(a.type);
  if (a.type != b.type || !format.codes_of) return std::nullopt;
  const int64_t length = a.row_length(), row_blocks = length / format.block_size;
  const int64_t row_bytes = row_blocks * format.block_bytes;
  std::atomic<int64_t> equal = 0;
  const int64_t grain = std::max<int64_t>(1, kPieceWeights / 16 / length);
  parallel_for(static_cast<int64_t>(rows.size()), grain, [&](int64_t begin, int64_t end) {
    std::vector<int8_t> left(length), right(length);
    for (int64_t i = begin; i < end; ++i) {
      format.codes_of(a.data.data() + rows[i] * row_bytes, left.data(), row_blocks);
      format.codes_of(b.data.data() + rows[i] * row_bytes, right.data(), row_blocks);
      equal += std::inner_product(left.begin(), left.end(), right.begin(), int64_t{0},
                                  std::plus<>(), std::equal_to<>());
    }
  });
  return equal;
}

std::vector<int64_t> sample_rows(int64_t num_rows, int64_t row_length, int64_t max_weights) {
  const int64_t wanted = std::max<int64_t>(1, max_weights / std::max<int64_t>(1, row_length));
  std::vector<int64_t> rows(static_cast<size_t>(std::min(num_rows, wanted)));
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto index = static_cast<int64_t>(i), count = static_cast<int64_t>(rows.size());
    const int64_t begin = index * num_rows / count, end = (index + 1) * num_rows / count;
    // The upper bits of a product with 2^64 divided by the golden ratio (Knuth's multiplicative
    // hash).
    const uint64_t hash = static_cast<uint64_t>(index + 1) * 0x9e3779b97f4a7c15u >> 32;
    rows[i] = begin + static_cast<int64_t>(hash % static_cast<uint64_t>(end - begin));
  }
  return rows;
}

}  // namespace nibble
