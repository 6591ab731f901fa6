// Each case in a child process, which a signal may end.
#include "base/stop_signal.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

namespace nibble {
namespace {

/// The signal that ends a child which runs `body`, or minus its exit status. It ignores none,
/// though nohup or a shell's background job may have started the tests.
int ending_of(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::signal(signal, SIG_DFL);
    _exit(body());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

TEST(StopSignal, EndsTheProcessByTheSignal) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP})
    EXPECT_EQ(ending_of([&] {
                handle_signals();
                raise(signal);
                return 1;
              }),
              signal);
}

TEST(StopSignal, RemovesUnfinishedFiles) {
  const std::string path = testing::TempDir() + "nibble_unfinished";
  const std::string finished = testing::TempDir() + "nibble_finished";
  for (const std::string& name : {path, finished}) std::ofstream(name) << "text";
  EXPECT_EQ(ending_of([&] {
              handle_signals();
              { const RemovedOnSignal no_longer(finished); }
              const RemovedOnSignal removed(path);
              raise(SIGTERM);
              return 1;
            }),
            SIGTERM);
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_TRUE(std::filesystem::remove(finished));
}

TEST(StopSignal, TheFirstAsksTheNextButAHangUpEnds) {
  EXPECT_EQ(ending_of([] {
              const StopRequest stop("");
              if (stop.requested()) return 1;
              raise(SIGINT);
              if (!stop.requested()) return 2;
              raise(SIGHUP);
              raise(SIGTERM);
              return 3;
            }),
            SIGTERM);
}

TEST(StopSignal, AsksOnlyWhileSomebodyListens) {
  EXPECT_EQ(ending_of([] {
              {
                const StopRequest stop("");
                raise(SIGINT);
              }
              const bool again = StopRequest("").requested();
              if (again) return 1;
              raise(SIGINT);
              return 2;
            }),
            SIGINT);
}

TEST(StopSignal, WhatNohupIgnoresStaysIgnored) {
  EXPECT_EQ(ending_of([] {
              ::signal(SIGHUP, SIG_IGN);
              handle_signals();
              raise(SIGHUP);
              return 7;
            }),
            -7);
}

}  // namespace
}  // namespace nibble
