#include "io/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "base/error.h"

namespace nibble {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;
constexpr std::string_view kMark = ".tmp.";  // NAME.tmp.<pid>

bool all_digits(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// A living writer holds the lock of its file, a dead one cannot.
void remove_if_dead(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (descriptor < 0) return;
  if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) ::unlink(path.c_str());
  ::close(descriptor);
}

/// NAME of "NAME.tmp.<pid>", "" for any other name.
std::string unfinished_name(const std::string& name) {
  const size_t mark = name.rfind(kMark);
  const bool matches = mark != std::string::npos && all_digits(name.substr(mark + kMark.size()));
  return matches ? name.substr(0, mark) : "";
}

/// Of one file, or of all where `name` is "". Nothing here is worth an error.
void remove_leftovers(const std::string& folder, const std::string& name) {
  std::error_code ignored;
  for (std::filesystem::directory_iterator entry(folder, ignored), end; entry != end;
       entry.increment(ignored)) {
    const std::string found = unfinished_name(entry->path().filename().string());
    if (!found.empty() && (name.empty() || found == name)) remove_if_dead(entry->path());
  }
}

/// Not check(): errno must be read after the call.
void rename_file(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0)
    fail(to, ": cannot rename '", from, "' to it: ", std::strerror(errno));
}

/// A rename is on disk only when its folder is. Some file systems cannot sync a folder; that is no
/// failure.
void sync_folder(const std::string& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace

AtomicFile::AtomicFile(std::string path)
    : path_(std::move(path)),
      temporary_(concat(path_, kMark, ::getpid())),
      removed_on_signal_(temporary_) {
  struct stat status {};
  if (::stat(path_.c_str(), &status) == 0)
    check(S_ISREG(status.st_mode), path_, ": cannot write: ",
          S_ISDIR(status.st_mode) ? "it is a folder" : "it is not a regular file");
  remove_leftovers(folder_of(path_), std::filesystem::path(path_).filename().string());
  open_temporary();
}

void AtomicFile::open_temporary() {
  for (;;) {
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    check(descriptor_ >= 0, path_, ": cannot write: ", std::strerror(errno));
    // Between open and lock the file looks like a dead writer's: one that was removed then has no
    // name left.
    ::flock(descriptor_, LOCK_EX);
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0 || status.st_nlink > 0) return;
    ::close(descriptor_);
  }
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::unlink(temporary_.c_str());
  ::close(descriptor_);
}

void AtomicFile::write(std::string_view text) {
  // Large pieces pass through the buffer too: the copy costs little beside the write itself.
  while (!text.empty()) {
    const size_t taken = std::min(text.size(), kBufferBytes - buffer_.size());
    buffer_.append(text.substr(0, taken));
    size_ += static_cast<int64_t>(taken);
    text.remove_prefix(taken);
    if (buffer_.size() == kBufferBytes) flush();
  }
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  write(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

int64_t AtomicFile::reserve(int64_t bytes) {
  flush();
  buffer_.shrink_to_fit();  // the header filled it; between reserved bytes little is written
  const int64_t begin = size_;
  size_ += bytes;
  return begin;
}

void AtomicFile::write_at(int64_t offset, std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor_, bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    check(written > 0, path_, ": cannot write at byte ", offset, ": ",
          written < 0 ? std::strerror(errno) : "nothing was taken");
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += written;
  }
}

void AtomicFile::flush() {
  write_at(flushed(), std::as_bytes(std::span(buffer_)));
  buffer_.clear();
}

void AtomicFile::sync() {
  flush();
  if (::fsync(descriptor_) != 0) fail(path_, ": cannot sync: ", std::strerror(errno));
}

void AtomicFile::commit(const std::string& keep_old_as) {
  sync();
  std::error_code ignored;
  if (!keep_old_as.empty() && std::filesystem::exists(path_, ignored))
    rename_file(path_, keep_old_as);
  rename_file(temporary_, path_);
  // From here on the file is the new one; only the lock is left to let go.
  ::close(descriptor_);
  descriptor_ = -1;
  sync_folder(folder_of(path_));
}

void write_file(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

std::string read_file(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(descriptor >= 0, path, ": cannot open: ", std::strerror(errno));
  std::string text;
  std::string piece(kBufferBytes, '\0');
  ssize_t taken;
  while ((taken = ::read(descriptor, piece.data(), piece.size())) != 0) {
    if (taken < 0 && errno == EINTR) continue;
    if (taken < 0) break;
    text.append(piece, 0, static_cast<size_t>(taken));
  }
  const int error = taken < 0 ? errno : 0;
  ::close(descriptor);
  check(error == 0, path, ": cannot read at byte ", text.size(), ": ", std::strerror(error));
  return text;
}

void remove_unfinished(const std::string& folder) { remove_leftovers(folder, ""); }

std::string folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

void create_folders(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  check(!error, path, ": cannot make the folder: ", error.message());
}

}  // namespace nibble
