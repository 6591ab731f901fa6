#include "io/line_file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string_view>

#include "base/error.h"
#include "io/atomic_file.h"
#include "tests/io/temporary_folder.h"

namespace nibble {
namespace {

TEST(LineFile, AddsToWhatIsThere) {
  TemporaryFolder folder;
  write_file(folder.file("lines"), "one\n");
  LineFile file(folder.file("lines"));
  file.append("two");
  EXPECT_EQ(read_file(folder.file("lines")), "one\ntwo\n");
  file.append("");
  file.sync();
  EXPECT_EQ(read_file(folder.file("lines")), "one\ntwo\n\n");
}

TEST(LineFile, NamesFileAndReason) {
  TemporaryFolder folder;
  try {
    LineFile file(folder.file("none/lines"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.what(),
              folder.file("none/lines") + ": cannot write: No such file or directory");
  }
  LineFile full("/dev/full");
  try {
    full.append("text");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "/dev/full: cannot write at byte 0: No space left on device");
  }
}

/// Appends lines of 100 bytes until one fails: 0 when it says so as it should.
int fill(const std::string& path) {
  LineFile file(path);
  try {
    for (int i = 0; i < 100; ++i) file.append(std::string(99, 'x'));
    return 1;
  } catch (const Error& error) {
    return std::string_view(error.what()).starts_with(path + ": cannot write at byte 900: ") ? 0
                                                                                             : 2;
  }
}

TEST(LineFile, TakesBackALineThatDoesNotFit) {
  TemporaryFolder folder;
  const std::string path = folder.file("lines");
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{950, 950};  // the tenth line is cut in its middle
    _exit(setrlimit(RLIMIT_FSIZE, &limit) == 0 ? fill(path) : 3);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(read_file(path).size(), 900u);
}

}  // namespace
}  // namespace nibble
