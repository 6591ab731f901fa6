// Stores that go around the caches, for results that are larger than these: memory is written
// without being read first. Where the processor has none, plain ones. (Intel's manual of
// optimization, "non-temporal stores".)
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace nibble {

/// From so many weights on, 16 MB, a result is not in a core's caches when it is used.
constexpr int64_t kStreamedWeights = int64_t{1} << 22;

#if defined(__SSE__)
constexpr int kStreamedFloats = 4;

inline bool can_stream(const float* out) {
  return reinterpret_cast<uintptr_t>(out) % (kStreamedFloats * sizeof(float)) == 0;
}
/// count numbers to `out`; both are aligned to 16 bytes.
inline __attribute__((always_inline)) void stream(const float* from, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kStreamedFloats <= count; i += kStreamedFloats)
    _mm_stream_ps(out + i, _mm_load_ps(from + i));
  std::memcpy(out + i, from + i, static_cast<size_t>(count - i) * sizeof(float));
}
/// Before others may read what was stored.
inline void finish_streams() { _mm_sfence(); }
#else
inline bool can_stream(const float*) { return false; }
inline void stream(const float* from, int64_t count, float* out) {
  std::memcpy(out, from, static_cast<size_t>(count) * sizeof(float));
}
inline void finish_streams() {}
#endif

}  // namespace nibble
