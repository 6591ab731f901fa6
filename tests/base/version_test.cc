#include "base/version.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace nibble {
namespace {

TEST(Version, IsTheOneOfCMake) {
  std::ifstream file(std::string(NIBBLE_SOURCE_DIR) + "/CMakeLists.txt");
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_NE(text.str().find(std::string("project(nibble VERSION ") + kProgramVersion + " "),
            std::string::npos)
      << "CMakeLists.txt does not have version " << kProgramVersion;
}

}  // namespace
}  // namespace nibble
