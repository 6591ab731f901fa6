#include "io/scratch_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace nibble {
namespace {

/// O_TMPFILE, or, on a file system without it, a file whose name goes at once.
int open_nameless(const std::string& folder) {
  const int descriptor = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (descriptor >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return descriptor;
  std::string name = folder + "/scratch.XXXXXX";
  const int named = ::mkostemp(name.data(), O_CLOEXEC);
  if (named >= 0) ::unlink(name.c_str());
  return named;
}

}  // namespace

ScratchFile::ScratchFile(std::string folder)
    : folder_(std::move(folder)), descriptor_(open_nameless(folder_)) {
  check(descriptor_ >= 0, folder_, ": cannot make a temporary file: ", std::strerror(errno));
}

ScratchFile::~ScratchFile() { ::close(descriptor_); }

void ScratchFile::write_at(int64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor_, bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    check(written > 0, folder_, ": cannot write byte ", offset,
          " of a temporary file: ", written < 0 ? std::strerror(errno) : "nothing was taken");
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += written;
  }
}

void ScratchFile::read_at(int64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t taken = ::pread(descriptor_, bytes.data(), bytes.size(), offset);
    if (taken < 0 && errno == EINTR) continue;
    check(taken > 0, folder_, ": cannot read byte ", offset,
          " of a temporary file: ", taken < 0 ? std::strerror(errno) : "it ends there");
    bytes = bytes.subspan(static_cast<size_t>(taken));
    offset += taken;
  }
}

}  // namespace nibble
