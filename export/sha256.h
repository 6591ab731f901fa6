// SHA-256 (FIPS 180-4) of files and texts, as sha256sum prints it: names the source and the
// configuration that an exported file came from.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace nibble {

class Sha256 {
 public:
  void update(std::span<const std::byte> bytes);
  /// 64 hexadecimal digits. The object is used up.
  std::string finish();

 private:
  void compress(const std::byte* block);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, 64> pending_{};
  size_t num_pending_ = 0;
  uint64_t total_bytes_ = 0;
};

std::string sha256(std::string_view text);
/// Of a whole file, memory-mapped. Throws with path and the system's reason.
std::string sha256_file(const std::string& path);

}  // namespace nibble
