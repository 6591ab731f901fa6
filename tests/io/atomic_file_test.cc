#include "io/atomic_file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>

#include "base/error.h"
#include "base/stop_signal.h"
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

TEST(AtomicFile, KeepsTheOldFileUnderTheNameItIsGiven) {
  TemporaryFolder folder;
  for (const char* text : {"first", "second", "third"}) {
    AtomicFile file(folder.file("out"));
    file.write(std::string_view(text));
    file.commit(folder.file("before"));
  }
  EXPECT_EQ(read_file(folder.file("out")), "third");
  EXPECT_EQ(read_file(folder.file("before")), "second");
  EXPECT_EQ(folder.num_files(), 2u);
}

TEST(AtomicFile, ASignalLeavesTheOldFileAlone) {
  TemporaryFolder folder;
  const std::string path = folder.file("out");
  write_file(path, "old");
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    handle_signals();
    AtomicFile file(path);
    file.write(std::string(3 << 20, 'x'));
    raise(SIGINT);
    _exit(1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGINT);
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(folder.num_files(), 1u);
}

TEST(AtomicFile, RemovesWhatKilledWritersLeftInAFolder) {
  TemporaryFolder folder;
  for (const char* name : {"a.tmp.12345", "b.gguf.tmp.1", "c.tmp.1x", ".tmp.5", "d"})
    write_file(folder.file(name), "text");
  AtomicFile living(folder.file("living"));
  remove_unfinished(folder.path());
  EXPECT_FALSE(std::filesystem::exists(folder.file("a.tmp.12345")));
  EXPECT_FALSE(std::filesystem::exists(folder.file("b.gguf.tmp.1")));
  for (const char* name : {"c.tmp.1x", ".tmp.5", "d"})
    EXPECT_TRUE(std::filesystem::exists(folder.file(name))) << name;
  living.commit();
  EXPECT_TRUE(std::filesystem::exists(folder.file("living")));
  remove_unfinished(folder.file("none"));
}

/// As somebody who may not write there: the error, by way of a child that gives up root.
std::string message_without_permission(const std::string& folder,
                                       const std::function<void()>& body) {
  std::filesystem::permissions(folder, std::filesystem::perms{0555});
  int ends[2];
  if (pipe(ends) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    if (getuid() == 0 && setuid(65534) != 0) _exit(1);
    const std::string message = message_of(body);
    _exit(write(ends[1], message.data(), message.size()) < 0);
  }
  close(ends[1]);
  std::string message(1000, '\0');
  message.resize(static_cast<size_t>(std::max<ssize_t>(0, read(ends[0], message.data(), 1000))));
  close(ends[0]);
  waitpid(child, nullptr, 0);
  std::filesystem::permissions(folder, std::filesystem::perms{0755});
  return message;
}

TEST(AtomicFile, NamesWhatItMayNotWrite) {
  TemporaryFolder folder;
  const std::string path = folder.file("out");
  EXPECT_EQ(message_without_permission(folder.path(), [&] { write_file(path, "text"); }),
            path + ": cannot write: Permission denied");
  EXPECT_EQ(message_without_permission(folder.path(), [&] { create_folders(path + "/inner"); }),
            path + "/inner: cannot make the folder: Permission denied");
  EXPECT_EQ(folder.num_files(), 0u);
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
