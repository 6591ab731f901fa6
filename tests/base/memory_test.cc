#include "base/memory.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdlib>
#include <vector>

namespace nibble {
namespace {

constexpr int64_t kPiece = int64_t{256} << 20;

TEST(Memory, WhatIsWrittenIsResidentAndRemembered) {
  const int64_t before = resident_memory_bytes();
  EXPECT_GT(before, 0);
  {
    const std::vector<char> written(kPiece, 1);
    // Pages of other parts of the process may come and go, 1 % of the piece at most.
    EXPECT_GT(resident_memory_bytes(), before + written[7] * kPiece / 100 * 99);
  }
  EXPECT_LT(resident_memory_bytes(), before + kPiece / 2);
  EXPECT_GE(peak_memory_bytes(), before + kPiece / 100 * 99);
}

TEST(Memory, AvailableIsLessThanTheMachineHas) {
  EXPECT_GT(available_memory_bytes(), 0);
  EXPECT_LT(available_memory_bytes(), int64_t{1} << 50);
}

/// In a process of its own: a limit on the address space cannot be taken back.
[[noreturn]] void see_an_address_space_limit() {
  const rlimit limit = {rlim_t{64} << 30, rlim_t{64} << 30};
  const bool set = setrlimit(RLIMIT_AS, &limit) == 0;
  const int64_t before = available_memory_bytes();
  const rlimit tight = {1, rlim_t{64} << 30};
  const bool lowered = setrlimit(RLIMIT_AS, &tight) == 0;
  std::_Exit(set && lowered && before > 0 && available_memory_bytes() == 0 ? 0 : 1);
}

/// An emulator (qemu-user) takes such a limit and forgets it.
bool limits_are_kept() {
  rlimit before{}, lowered{}, now{};
  getrlimit(RLIMIT_AS, &before);
  lowered = {rlim_t{64} << 30, before.rlim_max};
  setrlimit(RLIMIT_AS, &lowered);
  getrlimit(RLIMIT_AS, &now);
  setrlimit(RLIMIT_AS, &before);
  return now.rlim_cur == lowered.rlim_cur;
}

TEST(MemoryDeathTest, AnAddressSpaceLimitCounts) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer takes terabytes of address space";
#endif
  if (!limits_are_kept()) GTEST_SKIP() << "limits on the address space are ignored here";
  EXPECT_EXIT(see_an_address_space_limit(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace nibble
