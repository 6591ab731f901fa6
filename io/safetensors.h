// safetensors files: u64 header length, JSON header {name: {dtype, shape, data_offsets},
// __metadata__: {string: string}}, data (source: huggingface/safetensors format description). Used
// for our checkpoints and for other people's models. Memory-mapped, checked against the file before
// use; written aside and renamed. Little-endian only; dtypes of less than a byte (F4, F6) are
// refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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

/// Name of the entry that a file with a checksum ends with: U8 [8], little-endian, the Checksum
/// (base/checksum.h) of every byte before it, header included.
inline constexpr std::string_view kChecksumEntry = "checksum";

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
  /// Gives back the memory of an entry's data that was read; the data stays there to be read again.
  void release(const SafetensorsEntry& entry) const;
  bool has_checksum() const { return find(kChecksumEntry) != nullptr; }
  /// Reads the whole file. Throws, naming it, unless it ends with the checksum of all its other
  /// bytes.
  void verify_checksum() const;

 private:
  SafetensorsFile();
  struct Map;
  void read(std::span<const std::byte> bytes);

  std::unique_ptr<Map> map_;
  std::string path_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

struct SafetensorsWriting {
  bool checksum = false;      // adds the entry kChecksumEntry
  std::string keep_old_as{};  // name that an old file of this path gets; "": it is replaced
};

/// Writes all entries (their data must stay alive) and the metadata. Entries are laid out by
/// falling element size, so that each is aligned to its own. Throws, and leaves an old file as it
/// was, for a name that comes twice, an unknown dtype, or data whose size is not that of dtype and
/// shape.
void write_safetensors(const std::string& path, const std::vector<SafetensorsEntry>& entries,
                       const std::map<std::string, std::string>& metadata,
                       const SafetensorsWriting& writing = {});

/// Takes the next bytes of an entry's data.
using SafetensorsSink = std::function<void(std::span<const std::byte>)>;
/// Hands all data of an entry to the sink, in order.
using SafetensorsSource =
    std::function<void(const SafetensorsEntry& entry, const SafetensorsSink& sink)>;
/// The same with data that is made while it is written; that of the entries is not looked at.
void write_safetensors(const std::string& path, const std::vector<SafetensorsEntry>& entries,
                       const std::map<std::string, std::string>& metadata,
                       const SafetensorsSource& source, const SafetensorsWriting& writing = {});

}  // namespace nibble
