#include "base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <stdexcept>

namespace nibble {
namespace {

class Threads : public testing::Test {
 protected:
  ~Threads() override { set_num_threads(before_); }
  const int before_ = num_threads();
};

TEST_F(Threads, EveryIndexIsVisitedOnceInPiecesOfTheGrain) {
  for (const int threads : {1, 2, 5})
    for (const int64_t count : {0, 1, 7, 64, 1000})
      for (const int64_t grain : {1, 3, 64, 5000}) {
        set_num_threads(threads);
        const auto visits = std::make_unique<std::atomic<int>[]>(1000);
        std::atomic<bool> aligned{true};
        parallel_for(count, grain, [&](int64_t begin, int64_t end) {
          if (begin % grain != 0 || (end % grain != 0 && end != count)) aligned = false;
          for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
        });
        EXPECT_TRUE(aligned);
        for (int64_t i = 0; i < 1000; ++i)
          ASSERT_EQ(visits[static_cast<size_t>(i)], i < count)
              << threads << ' ' << count << ' ' << grain;
      }
}

TEST_F(Threads, AnExceptionOfAPieceComesOutAndThePoolLivesOn) {
  set_num_threads(3);
  EXPECT_THROW(parallel_for(100, 1,
                            [](int64_t begin, int64_t) {
                              if (begin > 50) throw std::runtime_error("piece");
                            }),
               std::runtime_error);
  std::atomic<int64_t> sum{0};
  parallel_for(100, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
  EXPECT_EQ(sum, 100);
}

TEST_F(Threads, NestedLoopsRunInTheirCaller) {
  set_num_threads(4);
  std::atomic<int64_t> sum{0};
  parallel_for(8, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      parallel_for(10, 1, [&](int64_t from, int64_t to) { sum += to - from; });
  });
  EXPECT_EQ(sum, 80);
}

TEST_F(Threads, AtLeastOneThread) {
  set_num_threads(0);
  EXPECT_EQ(num_threads(), 1);
  set_num_threads(6);
  EXPECT_EQ(num_threads(), 6);
}

}  // namespace
}  // namespace nibble
