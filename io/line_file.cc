#include "io/line_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace nibble {

LineFile::LineFile(std::string path)
    : path_(std::move(path)),
      descriptor_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) {
  check(descriptor_ >= 0, path_, ": cannot write: ", std::strerror(errno));
}

LineFile::~LineFile() { ::close(descriptor_); }

void LineFile::append(std::string_view line) {
  const off_t begin = ::lseek(descriptor_, 0, SEEK_END);
  const std::string text = std::string(line) + '\n';
  std::string_view rest = text;
  while (!rest.empty()) {
    const ssize_t written = ::write(descriptor_, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      const std::string reason = written < 0 ? std::strerror(errno) : "nothing was taken";
      [[maybe_unused]] const int cut = ::ftruncate(descriptor_, begin);
      fail(path_, ": cannot write at byte ", begin, ": ", reason);
    }
    rest.remove_prefix(static_cast<size_t>(written));
  }
}

void LineFile::sync() {
  if (::fsync(descriptor_) != 0) fail(path_, ": cannot sync: ", std::strerror(errno));
}

}  // namespace nibble
