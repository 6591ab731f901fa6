#include "io/input_files.h"

#include <glob.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"

namespace nibble {
namespace {

/// The files a pattern matches, sorted.
std::vector<std::string> expand(const std::string& pattern) {
  glob_t found = {};
  const int status = ::glob(pattern.c_str(), GLOB_ERR, nullptr, &found);
  std::vector<std::string> paths(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  check(status == 0 || status == GLOB_NOMATCH, pattern, ": cannot be searched");
  check(!paths.empty(), "no file matches '", pattern, "'");
  return paths;
}

}  // namespace

std::vector<std::string> find_files(const std::vector<std::string>& patterns) {
  std::vector<std::string> paths;
  std::set<std::string> seen;
  for (const std::string& pattern : patterns)
    for (std::string& path : expand(pattern))
      if (seen.insert(path).second) paths.push_back(std::move(path));
  return paths;
}

void for_each_row(
    std::string_view content,
    const std::function<void(const nlohmann::ordered_json& row, int64_t line)>& take) {
  for (int64_t line = 1; !content.empty(); ++line) {
    const std::string_view row = content.substr(0, content.find('\n'));
    content.remove_prefix(std::min(row.size() + 1, content.size()));
    if (row.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    with_frame(concat("line ", line), [&] {
      const auto json = nlohmann::ordered_json::parse(row, nullptr, /*allow_exceptions=*/false);
      check(!json.is_discarded(), "this row is not JSON");
      take(json, line);
    });
  }
}

}  // namespace nibble
