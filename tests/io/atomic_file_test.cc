#include "io/atomic_file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>

#include "base/error.h"
#include "tests/io/temporary_folder.h"

namespace nibble {
namespace {

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(AtomicFile, AppearsOnCommitWithAllItsBytes) {
  TemporaryFolder folder;
  const std::string path = folder.file("out");
  std::string wanted;
  AtomicFile file(path);
  for (int i = 0; i < 3000; ++i) {  // more than the buffer holds, in uneven pieces
    const std::string piece(static_cast<size_t>(1 + i % 997), static_cast<char>('a' + i % 26));
    file.write(piece);
    wanted += piece;
  }
  EXPECT_EQ(file.size(), static_cast<int64_t>(wanted.size()));
  EXPECT_FALSE(std::filesystem::exists(path));
  file.commit();
  EXPECT_EQ(read_file(path), wanted);
  EXPECT_EQ(folder.num_files(), 1u);
}

TEST(AtomicFile, WithoutCommitTheOldFileStays) {
  TemporaryFolder folder;
  write_file(folder.file("out"), "old");
  try {
    AtomicFile file(folder.file("out"));
    file.write("new");
    fail("something went wrong");
  } catch (const Error&) {
  }
  EXPECT_EQ(read_file(folder.file("out")), "old");
  EXPECT_EQ(folder.num_files(), 1u);
}

TEST(AtomicFile, LeftoversOfKilledWritersAreRemovedAndLivingWritersAreNot) {
  TemporaryFolder folder;
  write_file(folder.file("out.tmp.12345"), "of a killed writer");
  write_file(folder.file("out.tmp.notes"), "a name of somebody else's");
  AtomicFile living(folder.file("other"));
  write_file(folder.file("out"), "new");
  EXPECT_FALSE(std::filesystem::exists(folder.file("out.tmp.12345")));
  EXPECT_TRUE(std::filesystem::exists(folder.file("out.tmp.notes")));

  AtomicFile first(folder.file("out"));
  first.write("first");
  EXPECT_NE(message_of([&] { AtomicFile second(folder.file("out")); }).find("File exists"),
            std::string::npos);
  first.commit();
  EXPECT_EQ(read_file(folder.file("out")), "first");
}

TEST(AtomicFile, RefusesFoldersAndDevices) {
  TemporaryFolder folder;
  EXPECT_EQ(message_of([&] { AtomicFile file(folder.path()); }),
            folder.path() + ": cannot write: it is a folder");
  EXPECT_EQ(message_of([] { AtomicFile file("/dev/null"); }),
            "/dev/null: cannot write: it is not a regular file");
  EXPECT_NE(message_of([&] { AtomicFile file(folder.file("missing/out")); }).find("No such file"),
            std::string::npos);
}

/// Writes 4 MB over a file that says "old"; the exit status says what came of it.
int overwrite(const std::string& path) {
  try {
    AtomicFile file(path);
    for (int i = 0; i < 4096; ++i) file.write(std::string(1024, 'x'));
    file.commit();
    return 1;
  } catch (const Error& error) {
    return std::string_view(error.what()).starts_with(path + ": cannot write at byte ") ? 0 : 2;
  }
}

TEST(AtomicFile, AFileThatMayNotGrowLeavesTheOldOne) {
  TemporaryFolder folder;
  const std::string path = folder.file("out");
  write_file(path, "old");
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1 << 20, 1 << 20};
    _exit(setrlimit(RLIMIT_FSIZE, &limit) == 0 ? overwrite(path) : 3);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(folder.num_files(), 1u);
}

TEST(AtomicFile, AFullDiskLeavesTheOldOne) {
  TemporaryFolder folder;
  if (mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=1m") != 0)
    GTEST_SKIP() << "may not mount a small disk here: " << std::strerror(errno);
  const std::string path = folder.file("out");
  write_file(path, "old");
  EXPECT_EQ(overwrite(path), 0);
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(folder.num_files(), 1u);
  umount(folder.path().c_str());
}

TEST(ReadFile, NamesWhatItCannotRead) {
  TemporaryFolder folder;
  EXPECT_EQ(message_of([&] { read_file(folder.file("none")); }),
            folder.file("none") + ": cannot open: No such file or directory");
  EXPECT_NE(message_of([&] { read_file(folder.path()); }).find("cannot read"), std::string::npos);
}

}  // namespace
}  // namespace nibble
