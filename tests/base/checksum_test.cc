#include "base/checksum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <span>
#include <vector>

namespace nibble {
namespace {

std::vector<std::byte> some_bytes(size_t count) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i * i * 31 + i / 7);
  return bytes;
}

uint64_t checksum_of(const std::vector<std::byte>& bytes) {
  Checksum checksum;
  checksum.update(bytes);
  return checksum.value();
}

TEST(Checksum, DoesNotDependOnHowTheBytesCome) {
  const std::vector<std::byte> bytes = some_bytes(101);
  const uint64_t whole = checksum_of(bytes);
  for (size_t piece = 1; piece <= bytes.size(); ++piece) {
    Checksum checksum;
    for (size_t at = 0; at < bytes.size(); at += piece)
      checksum.update(std::span(bytes).subspan(at, std::min(piece, bytes.size() - at)));
    EXPECT_EQ(checksum.value(), whole) << piece << " bytes at a time";
  }
}

TEST(Checksum, EveryBitCounts) {
  std::vector<std::byte> bytes = some_bytes(53);
  const uint64_t before = checksum_of(bytes);
  for (std::byte& byte : bytes)
    for (int bit = 0; bit < 8; ++bit) {
      byte ^= std::byte{1} << bit;
      EXPECT_NE(checksum_of(bytes), before);
      byte ^= std::byte{1} << bit;
    }
}

TEST(Checksum, LengthAndPlaceCount) {
  std::set<uint64_t> seen;
  for (size_t zeros = 0; zeros < 40; ++zeros)
    seen.insert(checksum_of(std::vector<std::byte>(zeros)));
  EXPECT_EQ(seen.size(), 40u);
  for (size_t place = 0; place < 40; ++place) {
    std::vector<std::byte> bytes(40);
    bytes[place] = std::byte{1};
    seen.insert(checksum_of(bytes));
  }
  EXPECT_EQ(seen.size(), 80u);
}

}  // namespace
}  // namespace nibble
