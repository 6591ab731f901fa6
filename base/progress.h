// Progress of long work, on stderr: a bar that redraws itself on a terminal; elsewhere a plain line at most every
// few seconds, so that logs stay readable.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

class Progress {
 public:
  /// `total` steps of `unit` ("tensors", "steps", "chunks"), under a title. Nothing is drawn while quiet, nor inside of
  /// another's work, which shows itself.
  Progress(std::string title, int64_t total, std::string unit);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` steps are behind us; `note` is shown after the time left ("loss 0.31, 142 tokens/s").
  void update(int64_t done, std::string_view note = "");
  /// Draws the last state and ends the line. Called by the destructor too.
  void finish();

  /// Switches all bars off (tests, --quiet) or on.
  static void set_quiet(bool quiet);

 private:
  void draw(bool last);

  std::string title_, unit_, note_;
  int64_t total_, done_ = 0;
  int64_t first_done_ = -1;  // of the first update: a resumed run does not begin at 0
  std::chrono::steady_clock::time_point start_, first_, drawn_;
  bool inner_, terminal_, finished_ = false, drew_ = false;
};

/// 75 -> "1:15", 4000 -> "1:06:40".
std::string format_duration(double seconds);
/// 98362432 -> "98.4 MB" (decimal units).
std::string format_bytes(int64_t bytes);

}  // namespace nibble
