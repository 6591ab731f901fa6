#include "base/progress.h"

#include <gtest/gtest.h>
#include <pty.h>
#include <unistd.h>

#include <functional>
#include <string>

namespace nibble {
namespace {

TEST(FormatDuration, MinutesAndHours) {
  EXPECT_EQ(format_duration(0.2), "0:00");
  EXPECT_EQ(format_duration(75), "1:15");
  EXPECT_EQ(format_duration(4000), "1:06:40");
}

TEST(FormatBytes, DecimalUnits) {
  EXPECT_EQ(format_bytes(0), "0 bytes");
  EXPECT_EQ(format_bytes(999), "999 bytes");
  EXPECT_EQ(format_bytes(98362432), "98.4 MB");
  EXPECT_EQ(format_bytes(7'500'000'000), "7.5 GB");
}

TEST(Progress, ShortWorkAwayFromATerminalSaysNothing) {
  testing::internal::CaptureStderr();
  {
    Progress progress("quantize", 2, "tensors");
    progress.update(1);
    progress.update(2);
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

/// What `body` writes to stderr where that is a terminal.
std::string on_a_terminal(const std::function<void()>& body) {
  int terminal = -1, slave = -1;
  EXPECT_EQ(openpty(&terminal, &slave, nullptr, nullptr, nullptr), 0);
  const int before = dup(STDERR_FILENO);
  dup2(slave, STDERR_FILENO);
  body();
  dup2(before, STDERR_FILENO);
  std::string text(4096, '\0');
  const ssize_t taken = read(terminal, text.data(), text.size());
  for (const int descriptor : {terminal, slave, before}) close(descriptor);
  return text.substr(0, taken > 0 ? static_cast<size_t>(taken) : 0);
}

TEST(Progress, WorkInsideOfAnothersIsNotDrawn) {
  const std::string text = on_a_terminal([] {
    Progress outer("blocks", 2, "blocks");
    for (int i = 1; i <= 2; ++i) {
      Progress inner("initial scales", 1, "tensors");
      inner.update(1);
      inner.finish();
      outer.update(i);
    }
  });
  EXPECT_NE(text.find("blocks [========================] 2/2 blocks"), std::string::npos) << text;
  EXPECT_EQ(text.find("initial"), std::string::npos) << text;
  const std::string after = on_a_terminal([] { Progress("alone", 1, "tensors").update(1); });
  EXPECT_NE(after.find("alone ["), std::string::npos) << after;
}

}  // namespace
}  // namespace nibble
