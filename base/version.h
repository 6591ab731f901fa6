// The version of the program, which the files it writes carry. CMakeLists.txt names the same (a
// test compares).
#pragma once

namespace nibble {

inline constexpr const char* kProgramVersion = "0.1.0";

}  // namespace nibble
