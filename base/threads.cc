#include "base/threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <latch>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.h"

namespace nibble {
namespace {

int available_processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

/// OpenMP's own setting is LibTorch's, and so ours.
int threads_at_first() {
  const char* wanted = std::getenv("OMP_NUM_THREADS");
  const int threads = wanted ? std::atoi(wanted) : 0;
  return threads > 0 ? threads : available_processors();
}

int& threads_in_use() {
  static int threads = threads_at_first();
  return threads;
}

thread_local bool inside_parallel_for = false;

/// Starts `count` threads at once and ends them. OpenMP ends the process where it cannot start one,
/// with files half written; here it is an exception, and the C library keeps the stacks for
/// OpenMP's.
void check_that_threads_start(int count) {
  static std::atomic<int> started = 0;
  if (count <= started) return;
  std::latch all_tried(1);
  std::vector<std::jthread> threads;
  try {
    while (static_cast<int>(threads.size()) < count)
      threads.emplace_back([&all_tried] { all_tried.wait(); });
  } catch (const std::system_error& error) {
    all_tried.count_down();
    fail("cannot start ", count, " threads beside the first: ", error.code().message(),
         "; fewer are wanted with OMP_NUM_THREADS");
  }
  all_tried.count_down();
  started = count;
}

}  // namespace

int num_threads() { return threads_in_use(); }

void set_num_threads(int threads) { threads_in_use() = std::max(1, threads); }

void parallel_for(int64_t count, int64_t grain,
                  const std::function<void(int64_t begin, int64_t end)>& body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int64_t num_grains = (count + grain - 1) / grain;
  if (num_grains == 1 || inside_parallel_for || num_threads() == 1) return body(0, count);

  check_that_threads_start(num_threads() - 1);
  // Four pieces a thread: even work without much to hand out.
  const int64_t pieces = std::min<int64_t>(num_grains, int64_t{4} * num_threads());
  std::atomic<int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;
#pragma omp parallel num_threads(num_threads())
  {
    inside_parallel_for = true;
    for (int64_t piece; (piece = next.fetch_add(1)) < pieces;) {
      const int64_t begin = num_grains * piece / pieces * grain;
      const int64_t end = std::min(count, num_grains * (piece + 1) / pieces * grain);
      try {
        body(begin, end);
      } catch (...) {
        std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
      }
    }
    inside_parallel_for = false;
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace nibble
