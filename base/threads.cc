#include "base/threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace nibble {
namespace {

int available_processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

/// Workers that sleep until a generation of work starts; the caller works too.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
  }
  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(const std::function<void()>& work) {
    {
      std::lock_guard lock(mutex_);
      work_ = &work;
      busy_ = static_cast<int>(workers_.size());
      ++generation_;
    }
    wake_.notify_all();
    work();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    work_ = nullptr;
  }

 private:
  void serve() {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      const std::function<void()>* work = work_;
      lock.unlock();
      (*work)();
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void()>* work_ = nullptr;
  uint64_t generation_ = 0;
  int busy_ = 0;
  bool stopping_ = false;
};

std::unique_ptr<Pool>& pool() {
  static std::unique_ptr<Pool> instance = std::make_unique<Pool>(available_processors());
  return instance;
}

thread_local bool inside_parallel_for = false;

}  // namespace

int num_threads() { return pool()->size(); }

void set_num_threads(int threads) { pool() = std::make_unique<Pool>(std::max(1, threads)); }

void parallel_for(int64_t count, int64_t grain,
                  const std::function<void(int64_t begin, int64_t end)>& body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int64_t num_grains = (count + grain - 1) / grain;
  if (num_grains == 1 || inside_parallel_for || num_threads() == 1) return body(0, count);

  // Four pieces a thread: even work without much to hand out.
  const int64_t pieces = std::min<int64_t>(num_grains, int64_t{4} * num_threads());
  std::atomic<int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;
  pool()->run([&] {
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
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace nibble
