// A file that grows line by line. A line that does not fit (a full disk) is taken back, so that the
// file always ends with a whole one.
#pragma once

#include <string>
#include <string_view>

namespace nibble {

class LineFile {
 public:
  /// Opens for appending; makes the file where it is not there. Throws Error with path and the
  /// system's reason, as all of these do.
  explicit LineFile(std::string path);
  ~LineFile();
  LineFile(const LineFile&) = delete;
  LineFile& operator=(const LineFile&) = delete;

  /// The line's own end is added. Readers see it at once.
  void append(std::string_view line);
  /// Waits until all lines are on the disk.
  void sync();

 private:
  std::string path_;
  int descriptor_;
};

}  // namespace nibble
