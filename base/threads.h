// One pool of threads for row loops. LibTorch has its own for matmuls; the two never work at once.
#pragma once

#include <cstdint>
#include <functional>

namespace nibble {

/// Threads that parallel_for uses; at first the number of processors this process may run on.
int num_threads();
/// Sets it, 1 or more. Not while a parallel_for runs.
void set_num_threads(int threads);

/// Calls body(begin, end) on pieces that together cover [0, count), each a multiple of `grain` long (the last
/// may be shorter), on several threads; returns when all are done. The first exception is rethrown.
void parallel_for(int64_t count, int64_t grain,
                  const std::function<void(int64_t begin, int64_t end)>& body);

}  // namespace nibble
