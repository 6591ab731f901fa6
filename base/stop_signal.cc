#include "base/stop_signal.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cassert>
#include <cerrno>
#include <cstring>

namespace nibble {
namespace {

// All that the handler touches is fixed memory and atomics: a signal can come at any moment.
enum SlotState { kFree, kFilling, kRemove };
struct Slot {
  std::atomic<int> state{kFree};
  char path[4096];  // PATH_MAX
};
// Files that are written at the same time; more would stay to be found later. `quantize --types`
// may have one for each of llama-quantize's file types.
constexpr int kNumSlots = 40;
Slot slots[kNumSlots];

std::atomic<const char*> stop_notice{nullptr};  // set while a StopRequest is alive
std::atomic<bool> stop_requested{false};

void on_signal(int signal) {
  const int saved_errno = errno;
  if (const char* notice = stop_notice) {
    const bool first = !stop_requested.exchange(true);
    if (first) {
      [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, notice, std::strlen(notice));
    }
    errno = saved_errno;
    // A terminal that goes away sends SIGHUP twice, by the shell and by the system.
    if (first || signal == SIGHUP) return;
  }
  for (Slot& slot : slots)
    if (slot.state == kRemove) ::unlink(slot.path);
  // By the signal, not by exit(): a shell then knows that the program was stopped.
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

}  // namespace

void handle_signals() {
  ::signal(SIGXFSZ, SIG_IGN);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction action {};
    ::sigaction(signal, nullptr, &action);
    if (action.sa_handler == SIG_IGN) continue;
    action = {};
    action.sa_handler = on_signal;
    // NODEFER: the raise() in the handler ends the process there and then.
    action.sa_flags = SA_RESTART | SA_NODEFER;
    ::sigaction(signal, &action, nullptr);
  }
}

StopRequest::StopRequest(const char* notice) {
  handle_signals();
  assert(stop_notice == nullptr);
  stop_requested = false;
  stop_notice = notice;
}

StopRequest::~StopRequest() { stop_notice = nullptr; }

bool StopRequest::requested() const { return stop_requested; }

RemovedOnSignal::RemovedOnSignal(const std::string& path) : slot_(-1) {
  if (path.size() >= sizeof Slot::path) return;
  for (int i = 0; i < kNumSlots && slot_ < 0; ++i) {
    int wanted = kFree;
    if (slots[i].state.compare_exchange_strong(wanted, kFilling)) slot_ = i;
  }
  if (slot_ < 0) return;
  std::memcpy(slots[slot_].path, path.c_str(), path.size() + 1);
  slots[slot_].state = kRemove;
}

RemovedOnSignal::~RemovedOnSignal() {
  if (slot_ >= 0) slots[slot_].state = kFree;
}

}  // namespace nibble
