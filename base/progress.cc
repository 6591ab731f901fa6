#include "base/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <utility>

namespace nibble {
namespace {

std::atomic<bool> all_quiet{false};
std::atomic<int> unfinished{0};

constexpr auto kTerminalPeriod = std::chrono::milliseconds(100);
constexpr auto kLogPeriod = std::chrono::seconds(10);

int terminal_width() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20) return size.ws_col;
  return 80;
}

}  // namespace

Progress::Progress(std::string title, int64_t total, std::string unit)
    : title_(std::move(title)),
      unit_(std::move(unit)),
      total_(total),
      start_(std::chrono::steady_clock::now()),
      drawn_(start_),
      inner_(unfinished++ > 0),
      terminal_(isatty(STDERR_FILENO)) {}

Progress::~Progress() { finish(); }

void Progress::set_quiet(bool quiet) { all_quiet = quiet; }

void Progress::update(int64_t done, std::string_view note) {
  done_ = done;
  note_ = note;
  const auto now = std::chrono::steady_clock::now();
  if (first_done_ < 0) {
    first_done_ = done;
    first_ = now;
  }
  if (now - drawn_ < (terminal_ ? std::chrono::nanoseconds(kTerminalPeriod)
                                : std::chrono::nanoseconds(kLogPeriod)))
    return;
  drawn_ = now;
  draw(false);
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  --unfinished;
  if (terminal_ ? done_ > 0 : drew_) draw(true);
}

void Progress::draw(bool last) {
  if (all_quiet || inner_) return;
  drew_ = true;
  const auto now = std::chrono::steady_clock::now();
  const double share = total_ > 0 ? std::min(1.0, static_cast<double>(done_) / total_) : 0.0;
  std::string line = title_ + ' ';
  if (terminal_) {
    const int filled = static_cast<int>(share * 24);
    line += '[' + std::string(filled, '=') + std::string(24 - filled, ' ') + "] ";
  }
  line += std::to_string(done_) + '/' + std::to_string(total_) + ' ' + unit_ + ", ";
  if (last || done_ <= first_done_) {
    line += format_duration(std::chrono::duration<double>(now - start_).count());
  } else {
    const double seconds = std::chrono::duration<double>(now - first_).count();
    const double left = static_cast<double>(total_ - done_) / (done_ - first_done_);
    line += format_duration(seconds * std::max(0.0, left)) + " left";
  }
  if (!note_.empty()) line += ", " + note_;
  if (terminal_) {
    line.resize(std::min<size_t>(line.size(), terminal_width() - 1));
    std::fprintf(stderr, "\r\x1b[K%s%s", line.c_str(), last ? "\n" : "");
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

std::string format_duration(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  char text[32];
  if (whole >= 3600) {
    std::snprintf(text, sizeof text, "%d:%02d:%02d", static_cast<int>(whole / 3600),
                  static_cast<int>(whole / 60 % 60), static_cast<int>(whole % 60));
  } else {
    std::snprintf(text, sizeof text, "%d:%02d", static_cast<int>(whole / 60),
                  static_cast<int>(whole % 60));
  }
  return text;
}

std::string format_bytes(int64_t bytes) {
  const char* units[] = {"bytes", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1000 && unit < 4) {
    value /= 1000;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

}  // namespace nibble
