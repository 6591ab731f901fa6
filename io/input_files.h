// Files that a person names by pattern, and the rows of those that are JSON lines.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// The files that the patterns (paths or globs) name, in order, each once. Throws for a pattern
/// without a file.
std::vector<std::string> find_files(const std::vector<std::string>& patterns);

/// Calls `take` with each row of a .jsonl file's content. Throws, with the line, for a row that is
/// no JSON, and for what `take` throws.
void for_each_row(std::string_view content,
                  const std::function<void(const nlohmann::ordered_json& row, int64_t line)>& take);

}  // namespace nibble
