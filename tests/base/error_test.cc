#include "base/error.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Error, FramesReadFromTheOutsideIn) {
  try {
    with_frame("model.gguf",
               [] { with_frame("tensor 'x'", [] { fail("row ", 3, " holds a NaN"); }); });
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "model.gguf: tensor 'x': row 3 holds a NaN");
    EXPECT_EQ(error.exit_code(), 1);
  }
}

TEST(Error, UsageErrorsExitWithTwoThroughFrames) {
  try {
    with_frame("quantize", [] { fail_usage("unknown type 'Q4'"); });
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "quantize: unknown type 'Q4'");
    EXPECT_EQ(error.exit_code(), 2);
  }
}

TEST(Error, StaysOnOneLineAndSkipsEmptyFrames) {
  Error error("two\nlines");
  error.push("");
  error.push("file");
  EXPECT_STREQ(error.what(), "file: two lines");
}

TEST(Error, CheckThrowsOnlyWhenItDoesNotHold) {
  EXPECT_NO_THROW(check(true, "never seen"));
  EXPECT_THROW(check(false, "seen"), Error);
}

TEST(Error, WithFrameReturnsWhatTheBodyReturns) {
  int value = 7;
  EXPECT_EQ(&with_frame("f", [&]() -> int& { return value; }), &value);
}

TEST(DidYouMean, NamesTheNearestOrNothing) {
  const std::vector<std::string> names = {"quantize", "perplexity", "inspect"};
  EXPECT_EQ(did_you_mean("quantise", names), " (did you mean 'quantize'?)");
  EXPECT_EQ(did_you_mean("inspcet", names), " (did you mean 'inspect'?)");
  EXPECT_EQ(did_you_mean("frobnicate", names), "");
  EXPECT_EQ(did_you_mean("x", {}), "");
}

}  // namespace
}  // namespace nibble
