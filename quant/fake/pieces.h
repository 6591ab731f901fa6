// How a tensor's weights are shared among threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/threads.h"
#include "quant/format/registry.h"

namespace nibble {

/// Weights that a thread works on at once: inputs and outputs of a piece stay in its first-level
/// caches. Sums are made per piece, so a fixed size also makes them independent of the number of
/// threads.
constexpr int64_t kPieceWeights = 4096;

inline int64_t blocks_in_piece(const Format& format) {
  return std::max<int64_t>(1, kPieceWeights / format.block_size);
}

/// Runs body(piece, begin, end) on pieces of `size` that cover [0, count), on all threads.
template <class Body>
void for_each_piece(int64_t count, int64_t size, const Body& body) {
  parallel_for((count + size - 1) / size, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece)
      body(piece, piece * size, std::min(count, (piece + 1) * size));
  });
}

}  // namespace nibble
