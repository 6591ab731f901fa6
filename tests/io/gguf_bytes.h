// GGUF files written by hand, byte by byte, so that the reader is tested against the description of
// the format and not against our own writer, and so that every field can be wrong.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "io/gguf.h"

namespace nibble {

template <class T>
std::string raw(T number) {
  return {reinterpret_cast<const char*>(&number), sizeof number};
}
inline std::string raw_string(const std::string& text) { return raw<uint64_t>(text.size()) + text; }

inline std::string raw_header(uint32_t version, uint64_t num_tensors, uint64_t num_keys) {
  return "GGUF" + raw(version) + raw(num_tensors) + raw(num_keys);
}
/// A key with a value whose bytes are given.
inline std::string raw_key(const std::string& key, GgufValueType type, const std::string& value) {
  return raw_string(key) + raw(static_cast<uint32_t>(type)) + value;
}
inline std::string raw_array(GgufValueType element, uint64_t count, const std::string& values) {
  return raw(static_cast<uint32_t>(element)) + raw(count) + values;
}
inline std::string raw_tensor(const std::string& name, const std::vector<int64_t>& shape,
                              uint32_t type, uint64_t offset) {
  std::string row = raw_string(name) + raw(static_cast<uint32_t>(shape.size()));
  for (const int64_t size : shape) row += raw(size);
  return row + raw(type) + raw(offset);
}
inline std::string padded(std::string bytes, size_t alignment = 32) {
  bytes.resize((bytes.size() + alignment - 1) / alignment * alignment, '\0');
  return bytes;
}

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::filesystem::remove(path);  // some file systems sync a file that is cut and written again
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}
inline std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace nibble
