// What memory the process has and could have, as Linux tells it.
#pragma once

#include <cstdint>

namespace nibble {

/// Bytes of the process in RAM, now and at most so far; 0 where the system does not say.
int64_t resident_memory_bytes();
int64_t peak_memory_bytes();

/// Bytes that the process could still take without swapping: the least of what the system has
/// available, what its control group allows (v2 or v1) and what its address-space limit leaves.
int64_t available_memory_bytes();

}  // namespace nibble
