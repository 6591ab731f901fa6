#include "base/progress.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace nibble
