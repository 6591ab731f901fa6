#include "quant/format/rows.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/float16.h"
#include "base/threads.h"
#include "quant/format/kernels.h"

namespace nibble {
namespace {

/// Blocks that one thread takes at a time: big enough to pay for the hand-over, small enough to
/// share out.
constexpr int64_t kWeightsPerPiece = 1 << 16;

int64_t grain_of(int64_t unit) { return std::max<int64_t>(1, kWeightsPerPiece / unit); }

/// `scratch`: room for a row of weights.
void check_encoded(const Format& format, const std::byte* blocks, int64_t num_blocks, int64_t row,
                   std::vector<float>& scratch) {
  scratch.resize(num_blocks * std::max(format.num_scales, 1));
  if (format.num_scales > 0) {
    format.scales_of(blocks, scratch.data(), num_blocks);
  } else {
    format.decode(blocks, scratch.data(), num_blocks);
  }
  for (size_t i = 0; i < scratch.size(); ++i) {
    check(std::isfinite(scratch[i]), "row ", row, ": ",
          format.num_scales > 0 ? "the scale of block " : "the weight in column ",
          i / std::max(format.num_scales, 1), " overflows ",
          format.num_scales > 0 ? "float16" : format.name);
  }
}

void check_importance(std::span<const float> importance, int64_t row_length) {
  check(static_cast<int64_t>(importance.size()) == row_length, "importance holds ",
        importance.size(), " numbers, wanted one for each of the ", row_length, " columns");
  for (size_t i = 0; i < importance.size(); ++i) {
    check(std::isfinite(importance[i]) && importance[i] >= 0.0f, "importance of column ", i, " is ",
          importance[i], ", wanted a finite number of at least 0");
  }
}

}  // namespace

void check_finite(std::span<const float> weights, int64_t row_length, int64_t first_row) {
  // An exponent of ones carries into the sign bit. Integers without a branch, so that the compiler
  // vectorizes the loop; a sum of floats would wait for itself at each weight.
  uint32_t carries = 0;
  for (const float x : weights) carries |= (bits_of(x) & 0x7f800000u) + 0x00800000u;
  if (carries >> 31 == 0) return;
  const auto found =
      std::find_if_not(weights.begin(), weights.end(), [](float x) { return std::isfinite(x); });
  const int64_t index = found - weights.begin();
  fail("row ", first_row + index / row_length, ", column ", index % row_length, " holds ",
       std::isnan(*found) ? "a NaN" : "an infinity");
}

void decode_tensor(GgmlType type, std::span<const std::byte> bytes, std::span<float> out,
                   const Device& device) {
  const Format& format = require_decoder(type);
  const int64_t num_weights = static_cast<int64_t>(out.size());
  const int64_t num_blocks = num_weights / format.block_size;
  check(num_weights % format.block_size == 0, num_weights, " weights are no whole blocks of ",
        format.block_size, " (", format.name, ")");
  check(static_cast<int64_t>(bytes.size()) == num_blocks * format.block_bytes, bytes.size(),
        " bytes of ", format.name, ", wanted ", num_blocks * format.block_bytes, " for ",
        num_weights, " weights");
  if (device.cuda)
    return cuda_decode_rows(device.index, type, bytes.data(), out.data(), num_blocks);
  parallel_for(num_blocks, grain_of(format.block_size), [&](int64_t begin, int64_t end) {
    format.decode(bytes.data() + begin * format.block_bytes, out.data() + begin * format.block_size,
                  end - begin);
  });
}

std::vector<std::byte> encode_tensor(GgmlType type, std::span<const float> weights,
                                     int64_t row_length, std::span<const float> importance,
                                     EncodeMethod method, int64_t first_row, const Device& device) {
  const Format& format = require_format(type);
  check(row_length > 0 && row_length % format.block_size == 0, "rows of ", row_length,
        " weights are no whole blocks of ", format.block_size, " (", format.name, ")");
  check(weights.size() % row_length == 0, weights.size(), " weights are no whole rows of ",
        row_length);
  if (!importance.empty()) check_importance(importance, row_length);

  const int64_t num_rows = static_cast<int64_t>(weights.size()) / row_length;
  const int64_t blocks_per_row = row_length / format.block_size;
  const int64_t row_bytes = blocks_per_row * format.block_bytes;
  std::vector<std::byte> bytes(num_rows * row_bytes);
  const auto row_at = [&](int64_t row) { return weights.subspan(row * row_length, row_length); };
  const auto check_rows = [&](int64_t begin, int64_t end) {
    check_finite(weights.subspan(begin * row_length, (end - begin) * row_length), row_length,
                 first_row + begin);
  };
  const bool on_gpu = device.cuda && importance.empty();
  if (on_gpu) {
    parallel_for(num_rows, grain_of(row_length), check_rows);
    cuda_encode_rows(device.index, type, weights.data(), bytes.data(), num_rows * blocks_per_row,
                     method);
  }
  parallel_for(num_rows, grain_of(row_length), [&](int64_t begin, int64_t end) {
    if (!on_gpu) check_rows(begin, end);
    std::vector<float> scratch;
    // Without importance a block does not depend on its row, and the search fills its lanes better
    // from many.
    const int64_t together = importance.empty() ? end - begin : 1;
    for (int64_t row = begin; row < end && !on_gpu; row += together) {
      format.encode(row_at(row).data(), importance.empty() ? nullptr : importance.data(),
                    bytes.data() + row * row_bytes, together * row_length, method);
    }
    for (int64_t row = begin; row < end; ++row)
      check_encoded(format, bytes.data() + row * row_bytes, blocks_per_row, first_row + row,
                    scratch);
  });
  return bytes;
}

}  // namespace nibble
