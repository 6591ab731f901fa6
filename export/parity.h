// The parity law as a function: two tensors are the same when every weight has the same bits.
// Without LibTorch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/ggml_type.h"

namespace nibble {

struct WeightDifference {
  int64_t row = 0, column = 0;
  float wanted = 0, found = 0;
  /// "row 3, column 17: wanted 0.125 (0x3e000000), found 0.25 (0x3e800000)"
  std::string text() const;
};

/// The first weight whose bits differ; nothing when there is none. Equal lengths, a multiple of
/// row_length.
std::optional<WeightDifference> first_difference(std::span<const float> wanted,
                                                 std::span<const float> found, int64_t row_length);

/// The first weight that is NaN or infinite, as its index; nothing when all are finite.
std::optional<int64_t> first_not_finite(std::span<const float> weights);

/// Decodes `blocks` and throws, naming row, column, wanted and found, unless every weight has the
/// bits that `wanted` has and is finite. Returns content_hash of the weights.
uint64_t check_parity(GgmlType type, std::span<const std::byte> blocks,
                      std::span<const float> wanted, int64_t row_length);

}  // namespace nibble
