#include "base/log.h"

#include <atomic>
#include <cstdio>

namespace nibble {
namespace {
std::atomic<bool> quiet_log{false};
}

void write_note(const std::string& line) {
  if (!quiet_log) std::fprintf(stderr, "%s\n", line.c_str());
}
void write_warning(const std::string& line) { std::fprintf(stderr, "warning: %s\n", line.c_str()); }
void set_quiet_log(bool quiet) { quiet_log = quiet; }

}  // namespace nibble
