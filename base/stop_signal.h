// What Ctrl-C (SIGINT), SIGTERM and SIGHUP do: unfinished files are removed and the process ends by
// the signal; where a StopRequest is alive, the first signal only asks its owner to stop.
#pragma once

#include <string>

namespace nibble {

/// Takes the three signals over, but for one that the process was started to ignore (nohup does
/// that). SIGXFSZ is ignored, so that a file over its size limit is an error of its write. main()
/// calls this; later calls change nothing.
void handle_signals();

/// While one is alive, the first signal ends nothing: the owner looks at requested() where it can
/// stop. A second one ends the process at once, unless it is SIGHUP. One at a time.
class StopRequest {
 public:
  /// Calls handle_signals(). notice: a literal, written to stderr when the first signal comes.
  explicit StopRequest(const char* notice);
  ~StopRequest();
  StopRequest(const StopRequest&) = delete;
  StopRequest& operator=(const StopRequest&) = delete;

  bool requested() const;
};

/// While one is alive, a signal that ends the process removes the file first. (What SIGKILL leaves
/// is io/atomic_file.h's to find.)
class RemovedOnSignal {
 public:
  explicit RemovedOnSignal(const std::string& path);
  ~RemovedOnSignal();
  RemovedOnSignal(const RemovedOnSignal&) = delete;
  RemovedOnSignal& operator=(const RemovedOnSignal&) = delete;

 private:
  int slot_;
};

}  // namespace nibble
