#include "io/scratch_file.h"

#include <gtest/gtest.h>

#include <array>

#include "base/error.h"
#include "tests/io/temporary_folder.h"

namespace nibble {
namespace {

TEST(ScratchFileTest, GivesBackWhatWasWrittenAndLeavesNothing) {
  const TemporaryFolder folder;
  ScratchFile file(folder.path());
  const std::array<std::byte, 3> bytes = {std::byte{1}, std::byte{2}, std::byte{3}};
  file.write_at(5, bytes);
  std::array<std::byte, 4> read = {};
  file.read_at(4, read);
  EXPECT_EQ(read,
            (std::array<std::byte, 4>{std::byte{0}, std::byte{1}, std::byte{2}, std::byte{3}}));
  EXPECT_EQ(folder.num_files(), 0u);
}

TEST(ScratchFileTest, SaysWhatDoesNotWork) {
  const TemporaryFolder folder;
  const ScratchFile file(folder.path());
  std::array<std::byte, 1> byte = {};
  EXPECT_THROW(file.read_at(0, byte), Error);
  try {
    ScratchFile(folder.file("missing"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(folder.file("missing")), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble
