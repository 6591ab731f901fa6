// Threads for row loops: OpenMP's, which LibTorch's matmuls use too. A pool of our own would share
// the processors with OpenMP's threads, which spin for milliseconds after each matmul.
#pragma once

#include <cstdint>
#include <functional>

namespace nibble {

/// Threads that parallel_for uses; at first OMP_NUM_THREADS, or the number of processors that this
/// process may run on.
int num_threads();
/// Sets it, 1 or more. Not while a parallel_for runs.
void set_num_threads(int threads);

/// Calls body(begin, end) on pieces that together cover [0, count), each a multiple of `grain` long
/// (the last may be shorter), on several threads; returns when all are done. The first exception is
/// rethrown.
void parallel_for(int64_t count, int64_t grain,
                  const std::function<void(int64_t begin, int64_t end)>& body);

}  // namespace nibble
