// The one exception type. What went wrong is said where it is noticed; where it happened is pushed on the
// way up, one frame at each boundary (recipe > file > tensor), so that the printed line reads from the
// outside in:  "quantize: model.gguf: tensor 'blk.0.attn_q.weight': row 3 holds a NaN".
#pragma once

#include <cstdint>
#include <exception>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble {

/// What the program's exit status is made from: 1 = the run failed, 2 = usage or configuration.
enum class ErrorKind { kRun = 1, kUsage = 2 };

class Error : public std::exception {
 public:
  explicit Error(std::string message, ErrorKind kind = ErrorKind::kRun);

  /// Names one more place, further out than all pushed before. Empty frames are dropped.
  void push(std::string frame);

  /// "outermost: ...: innermost: message", on one line.
  const char* what() const noexcept override { return line_.c_str(); }
  ErrorKind kind() const { return kind_; }
  int exit_code() const { return static_cast<int>(kind_); }

 private:
  std::string line_;
  ErrorKind kind_;
};

/// The arguments written one after the other with operator<<.
template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

/// Throws Error with the arguments as its message.
template <class... Args>
[[noreturn]] void fail(const Args&... args) {
  throw Error(concat(args...));
}

/// As fail(), for a mistake in the command line or the configuration (exit status 2).
template <class... Args>
[[noreturn]] void fail_usage(const Args&... args) {
  throw Error(concat(args...), ErrorKind::kUsage);
}

/// Checks input (never our own invariants, which are assert()s).
template <class... Args>
void check(bool holds, const Args&... args) {
  if (!holds) fail(args...);
}

/// Runs `body`; an Error that leaves it gets `frame` pushed.
template <class Body>
decltype(auto) with_frame(std::string_view frame, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (Error& error) {
    error.push(std::string(frame));
    throw;
  }
}

/// " (did you mean 'x'?)" for the candidate nearest to `name` by edit distance, or "" when none is near.
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace nibble
