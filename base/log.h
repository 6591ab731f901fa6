// Lines for a person, on stderr (stdout carries results only). Plain text, no levels to configure: notes and
// warnings.
#pragma once

#include "base/error.h"

namespace nibble {

/// Writes one line. Quiet mode (set_quiet_log) drops notes, never warnings.
void write_note(const std::string& line);
void write_warning(const std::string& line);
void set_quiet_log(bool quiet);

template <class... Args>
void note(const Args&... args) {
  write_note(concat(args...));
}
template <class... Args>
void warn(const Args&... args) {
  write_warning(concat(args...));
}

}  // namespace nibble
