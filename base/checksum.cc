#include "base/checksum.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/threads.h"

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

uint64_t content_hash(std::span<const float> values) {
  constexpr int64_t kPiece = 1 << 16;  // part of the definition, as each piece has its own hash
  const auto count = static_cast<int64_t>(values.size());
  std::vector<uint64_t> hashes((count + kPiece - 1) / kPiece);
  parallel_for(static_cast<int64_t>(hashes.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t begin = piece * kPiece, end = std::min(count, begin + kPiece);
      uint64_t hash = static_cast<uint64_t>(end - begin);
      for (int64_t i = begin; i < end; i += 2) {
        uint64_t word = 0;
        std::memcpy(&word, values.data() + i, sizeof(float) * std::min<int64_t>(2, end - i));
        hash = hash_step(hash, word);
      }
      hashes[piece] = hash;
    }
  });
  uint64_t hash = static_cast<uint64_t>(count);
  for (const uint64_t piece : hashes) hash = hash_step(hash, piece);
  return hash;
}

}  // namespace nibble
