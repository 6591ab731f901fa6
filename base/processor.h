// The machine, in words, for reports.
#pragma once

#include <string>

namespace nibble {

/// "AMD EPYC 9R14", or "unknown processor" where the system does not tell.
std::string processor_name();

}  // namespace nibble
