#include "base/memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace nibble {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

/// The first number of a file; kUnlimited where there is none ("max", no such file).
int64_t read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t number = 0;
  return file >> number ? number : kUnlimited;
}

/// Pages in one of the columns of /proc/self/statm, in bytes.
int64_t statm_bytes(int column) {
  std::ifstream file("/proc/self/statm");
  int64_t pages = 0;
  for (int i = 0; i <= column; ++i)
    if (!(file >> pages)) return 0;
  return pages * sysconf(_SC_PAGESIZE);
}

/// The number that follows `key` in a file of keys and numbers, or `missing`.
int64_t read_value(const std::string& path, const std::string& key, int64_t missing) {
  std::ifstream file(path);
  for (std::string word; file >> word; std::getline(file, word)) {
    int64_t value = 0;
    if (word == key && file >> value) return value;
  }
  return missing;
}

int64_t system_available() {
  const int64_t kib = read_value("/proc/meminfo", "MemAvailable:", -1);
  return kib < 0 ? kUnlimited : kib * 1024;
}

/// What a control group's limit leaves; pages of files that nobody used lately are as good as free.
int64_t group_available(const std::string& folder, const char* limit_file, const char* usage_file,
                        const char* inactive_key) {
  const int64_t limit = read_number(folder + limit_file), usage = read_number(folder + usage_file);
  if (limit == kUnlimited || usage == kUnlimited) return kUnlimited;
  const int64_t inactive = read_value(folder + "/memory.stat", inactive_key, 0);
  return std::max<int64_t>(0, limit - usage + inactive);
}

int64_t address_space_available() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnlimited;
  return std::max<int64_t>(0, static_cast<int64_t>(limit.rlim_cur) - statm_bytes(0));
}

}  // namespace

int64_t resident_memory_bytes() { return statm_bytes(1); }

// Not getrusage(): that begins with what the parent had before exec().
int64_t peak_memory_bytes() { return read_value("/proc/self/status", "VmHWM:", 0) * 1024; }

int64_t available_memory_bytes() {
  const std::string groups = "/sys/fs/cgroup";
  return std::min({system_available(),
                   group_available(groups, "/memory.max", "/memory.current", "inactive_file"),
                   group_available(groups + "/memory", "/memory.limit_in_bytes",
                                   "/memory.usage_in_bytes", "total_inactive_file"),
                   address_space_available()});
}

}  // namespace nibble
