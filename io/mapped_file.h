// A file's bytes, mapped read-only for as long as the object lives. The pages are read when first
// touched. If another process shortens the file meanwhile, touching the lost part is a SIGBUS, as
// with every map.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace nibble {

class MappedFile {
 public:
  /// Throws Error with path and the system's reason; only regular files are taken.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return bytes_; }
  /// Gives back the memory of the pages that lie wholly in this range; touched again, they are read
  /// again.
  void release(int64_t offset, int64_t size) const;
  /// Says that reads will be short and far apart: the system then reads nothing around them.
  void expect_jumps() const;
  /// Starts reading this range, for later.
  void read_ahead(int64_t offset, int64_t size) const;

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace nibble
