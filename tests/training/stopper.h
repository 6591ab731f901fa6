// Ctrl-C for a training in the tests' own process.
#pragma once

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace nibble {

inline std::vector<std::string> lines_of(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

/// Sends this process a signal, as Ctrl-C does, when metrics.jsonl has so many lines.
class Stopper {
 public:
  Stopper(std::filesystem::path metrics, size_t num_lines)
      : thread_([this, metrics = std::move(metrics), num_lines] {
          while (!done_ && lines_of(metrics).size() < num_lines)
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
          if (!done_) ::kill(::getpid(), SIGINT);
        }) {}
  ~Stopper() {
    done_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

}  // namespace nibble
