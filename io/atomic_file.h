// A file that appears whole or not at all: written beside its final name, synced, renamed. A kill
// or a full disk leaves the old file as it was; the unfinished one is removed, by an error as by a
// signal. What SIGKILL leaves, NAME.tmp.<pid>, the next writer of that name removes, and
// remove_unfinished() in a whole folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/stop_signal.h"

namespace nibble {

class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();  // without commit(): removes what was written
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Buffered. Throws Error with path, offset and the system's reason.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  int64_t size() const { return size_; }
  /// Leaves the next `bytes` bytes to write_at() and returns where they begin; write() goes on
  /// after them.
  int64_t reserve(int64_t bytes);
  /// Unbuffered, inside what was reserved; from several threads if wanted.
  void write_at(int64_t offset, std::span<const std::byte> bytes) const;
  /// Flush, fsync: only the rename is left. For files that are to appear together.
  void sync();
  /// sync(), rename, fsync of the folder. keep_old_as: the name that the old file gets when
  /// the new one is on disk, or "".
  void commit(const std::string& keep_old_as = "");

 private:
  void open_temporary();
  void flush();
  /// Of `size()` bytes, those still in the buffer are not in the file.
  int64_t flushed() const { return size_ - static_cast<int64_t>(buffer_.size()); }
  std::string path_, temporary_;
  RemovedOnSignal removed_on_signal_;
  std::string buffer_;
  int64_t size_ = 0;
  int descriptor_ = -1;
};

/// The whole of a small file in one go.
void write_file(const std::string& path, std::string_view text);
/// The whole of a text file; throws with path and the system's reason.
std::string read_file(const std::string& path);

/// Removes what killed writers left in a folder: its NAME.tmp.<pid> that no living process writes.
void remove_unfinished(const std::string& folder);
/// The folder that a file of this path is in: "." where it names none.
std::string folder_of(const std::string& path);
/// Makes a folder and those above it where they are not there. Throws with path and the system's
/// reason.
void create_folders(const std::string& path);

}  // namespace nibble
