// A file's bytes, mapped read-only for as long as the object lives. The pages are read when first touched. If
// another process shortens the file meanwhile, touching the lost part is a SIGBUS, as with every map.
#pragma once

#include <cstddef>
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

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace nibble
