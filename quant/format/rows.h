// Whole tensors: rows handed to a format's functions on all threads, or to a GPU, with the checks
// that a file needs. Both devices give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "quant/format/device.h"
#include "quant/format/registry.h"

namespace nibble {

/// Throws Error naming row and column of the first NaN or infinity in whole rows of `row_length`,
/// which count from `first_row`.
void check_finite(std::span<const float> weights, int64_t row_length, int64_t first_row = 0);
/// Decodes a tensor's bytes to float32. out.size() weights; bytes.size() must fit them.
void decode_tensor(GgmlType type, std::span<const std::byte> bytes, std::span<float> out,
                   const Device& device = {});
/// Encodes rows of `row_length`. importance: empty, or one row of weights that every row shares.
/// Throws Error naming the row and column of a NaN or infinity, or the row whose scale overflows
/// float16. Errors count rows from `first_row`, for a caller that hands over a tensor piece by
/// piece. With importance the CPU does it, whatever the device. Shows no progress.
std::vector<std::byte> encode_tensor(GgmlType type, std::span<const float> weights,
                                     int64_t row_length, std::span<const float> importance,
                                     EncodeMethod method, int64_t first_row = 0,
                                     const Device& device = {});

}  // namespace nibble
