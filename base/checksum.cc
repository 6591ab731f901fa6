#include "base/checksum.h"

#include <algorithm>
#include <cstring>

namespace nibble {
namespace {

uint64_t load_word(const std::byte* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

}  // namespace

void Checksum::update(std::span<const std::byte> bytes) {
  const size_t held = size_ % sizeof(uint64_t);
  size_ += bytes.size();
  if (held > 0) {
    const size_t taken = std::min(bytes.size(), sizeof(uint64_t) - held);
    std::copy_n(bytes.begin(), taken, pending_.begin() + held);
    if (held + taken < sizeof(uint64_t)) return;
    hash_ = hash_step(hash_, load_word(pending_.data()));
    bytes = bytes.subspan(taken);
  }
  uint64_t hash = hash_;
  while (bytes.size() >= sizeof(uint64_t)) {
    hash = hash_step(hash, load_word(bytes.data()));
    bytes = bytes.subspan(sizeof(uint64_t));
  }
  hash_ = hash;
  std::copy(bytes.begin(), bytes.end(), pending_.begin());
}

uint64_t Checksum::value() const {
  std::array<std::byte, 8> rest{};
  std::copy_n(pending_.begin(), size_ % sizeof(uint64_t), rest.begin());
  return hash_step(hash_step(hash_, load_word(rest.data())), size_);
}

}  // namespace nibble
