#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace nibble {

MappedFile::MappedFile(const std::string& path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer; it has no effect on regular files.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  check(descriptor >= 0, path, ": cannot open: ", std::strerror(errno));
  struct stat status {};
  const bool regular = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  const size_t size = regular ? static_cast<size_t>(status.st_size) : 0;
  void* start = nullptr;
  int error = 0;
  if (size > 0) {
    start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    error = start == MAP_FAILED ? errno : 0;
  }
  ::close(descriptor);
  check(regular, path, ": ",
        S_ISDIR(status.st_mode) ? "is a folder, not a file" : "is not a regular file");
  check(error == 0, path, ": cannot map ", size, " bytes: ", std::strerror(error));
  bytes_ = {static_cast<const std::byte*>(start), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

void MappedFile::expect_jumps() const {
  if (!bytes_.empty()) ::madvise(const_cast<std::byte*>(bytes_.data()), bytes_.size(), MADV_RANDOM);
}

void MappedFile::read_ahead(int64_t offset, int64_t size) const {
  const int64_t page = ::sysconf(_SC_PAGESIZE);
  const int64_t begin = offset / page * page;
  ::madvise(const_cast<std::byte*>(bytes_.data()) + begin,
            static_cast<size_t>(offset + size - begin), MADV_WILLNEED);
}

void MappedFile::release(int64_t offset, int64_t size) const {
  const int64_t page = ::sysconf(_SC_PAGESIZE);
  const int64_t begin = (offset + page - 1) / page * page, end = (offset + size) / page * page;
  // No failure matters: the memory is then kept, as if nothing had been asked.
  if (begin < end)
    ::madvise(const_cast<std::byte*>(bytes_.data()) + begin, static_cast<size_t>(end - begin),
              MADV_DONTNEED);
}

}  // namespace nibble
