#include "training/schedule.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Schedule, WarmsUpThenFallsByACosine) {
  OptimizerOptions options;
  options.warmup = 0.1;
  options.final_ratio = 0.2;
  EXPECT_DOUBLE_EQ(learning_rate_factor(0.05, options), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate_factor(0.1, options), 1);
  EXPECT_DOUBLE_EQ(learning_rate_factor(0.55, options), 0.6);  // the middle: (1 + 0.2) / 2
  EXPECT_DOUBLE_EQ(learning_rate_factor(1, options), 0.2);
  for (double p = 0.1; p < 0.99; p += 0.01)
    EXPECT_GT(learning_rate_factor(p, options), learning_rate_factor(p + 0.01, options));
}

TEST(Schedule, WithoutWarmUpStartsAtThePeak) {
  OptimizerOptions options;
  options.warmup = 0;
  EXPECT_DOUBLE_EQ(learning_rate_factor(0, options), 1);
  options.warmup = 1;  // warm-up only
  EXPECT_DOUBLE_EQ(learning_rate_factor(0.5, options), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate_factor(1, options), 1);
}

TEST(Schedule, FollowsTokensOrTheClockWhicheverIsFurther) {
  EXPECT_DOUBLE_EQ(run_progress(50, 100, 1e6, 0), 0.5);  // no limit on time
  EXPECT_DOUBLE_EQ(run_progress(50, 100, 45, 1), 0.75);
  EXPECT_DOUBLE_EQ(run_progress(90, 100, 45, 1), 0.9);
  EXPECT_DOUBLE_EQ(run_progress(10, 100, 500, 1), 1);
}

}  // namespace
}  // namespace nibble
