// What a fuzzer's bytes are put through, as files: read everything a stranger's file may hold.
// Shared by the libFuzzer entry points here and by tests/io/fuzz_test.cc. Only nibble::Error may
// come out of the readers; anything else ends the process, and so do the sanitizers.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "base/error.h"
#include "io/gguf.h"
#include "io/safetensors.h"

namespace nibble {

/// A file in memory with a path, for readers that take paths.
class MemoryFile {
 public:
  explicit MemoryFile(std::span<const uint8_t> bytes) : descriptor_(::memfd_create("input", 0)) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      check(written > 0, "cannot write a file in memory");
      bytes = bytes.subspan(static_cast<size_t>(written));
    }
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

/// Touches every byte: a span past the map's end is then a fault, not luck.
inline uint64_t sum_of(std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (const std::byte each : bytes) sum += std::to_integer<uint64_t>(each);
  return sum;
}

/// Whether the file could be read. What could be read must agree with itself.
inline bool read_gguf(std::span<const uint8_t> bytes) {
  const MemoryFile input(bytes);
  try {
    const GgufFile file = GgufFile::open(input.path());
    volatile uint64_t sum = 0;  // so that the reads stay
    for (const GgufTensor& tensor : file.tensors()) {
      if (file.find_tensor(tensor.name) != &tensor) std::abort();  // a name that comes twice
      const int64_t rows = tensor.row_length() > 0 ? tensor.num_rows() : 0;
      if (static_cast<int64_t>(tensor.data.size()) !=
          rows * row_bytes(tensor.type, tensor.row_length()))
        std::abort();
      sum = sum + sum_of(tensor.data);
    }
    for (const auto& [key, value] : file.metadata().pairs())
      if (file.metadata().find(key) != &value) std::abort();  // a key that comes twice
    return true;
  } catch (const Error&) {
    return false;
  }
}

inline bool read_safetensors(std::span<const uint8_t> bytes) {
  const MemoryFile input(bytes);
  try {
    const SafetensorsFile file = SafetensorsFile::open(input.path());
    volatile uint64_t sum = 0;
    size_t data_bytes = 0;
    for (const SafetensorsEntry& entry : file.entries()) {
      if (file.find(entry.name) != &entry) std::abort();  // a name that comes twice
      data_bytes += entry.data.size();
      sum = sum + sum_of(entry.data);
    }
    if (data_bytes > bytes.size()) std::abort();  // entries that overlap
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace nibble
