// A file without a name, for what memory need not hold: gone when it is closed, however the process
// ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace nibble {

class ScratchFile {
 public:
  /// In a folder that is there. Throws Error with the folder and the system's reason.
  explicit ScratchFile(std::string folder);
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  /// Both throw Error with folder, offset and the system's reason; a read past the end does too.
  void write_at(int64_t offset, std::span<const std::byte> bytes);
  void read_at(int64_t offset, std::span<std::byte> bytes) const;

 private:
  std::string folder_;
  int descriptor_ = -1;
};

}  // namespace nibble
