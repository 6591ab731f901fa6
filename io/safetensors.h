// safetensors files: u64 header length, JSON header {name: {dtype, shape, data_offsets},
// __metadata__: {string: string}}, data (source: huggingface/safetensors format description). Used
// for checkpoints. Memory-mapped, checked against the file before use; written aside and renamed.
// Little-endian only; dtypes of less than a byte (F4, F6) are refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;           // "F32", "F16", "BF16", "I64", "U8", ...
  std::vector<int64_t> shape;  // slowest first
  std::span<const std::byte> data;
};

/// An open file. What it holds is what the format demands: names are unique, every entry's bytes
/// are those of its dtype and shape, and the entries fill the data section without hole or overlap.
class SafetensorsFile {
 public:
  /// Throws Error with path and byte offset or entry.
  static SafetensorsFile open(const std::string& path);
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  const std::string& path() const { return path_; }
  /// In the order of their data, which is aligned to 8 bytes in files that write_safetensors()
  /// made.
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  const SafetensorsEntry* find(std::string_view name) const;
  /// Throws, naming file, entry and the nearest name, when there is none.
  const SafetensorsEntry& entry(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  SafetensorsFile();
  struct Map;
  void read(std::span<const std::byte> bytes);

  std::unique_ptr<Map> map_;
  std::string path_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// Writes all entries (their data must stay alive) and the metadata. Entries are laid out by
/// falling element size, so that each is aligned to its own. Throws, before the file is touched,
/// for a name that comes twice, an unknown dtype, or data whose size is not that of dtype and
/// shape.
void write_safetensors(const std::string& path, const std::vector<SafetensorsEntry>& entries,
                       const std::map<std::string, std::string>& metadata);

}  // namespace nibble
