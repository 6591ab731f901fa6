#include "training/text_files.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/input_files.h"

namespace nibble {
namespace {

std::string row_text(const nlohmann::ordered_json& object, const std::string& text_field) {
  check(object.is_object(), "wants a JSON object, found ", object.type_name());
  const auto field = object.find(text_field);
  if (field == object.end()) {
    std::vector<std::string> names;
    for (const auto& [name, value] : object.items()) names.push_back(name);
    fail("this row has no '", text_field, "'", did_you_mean(text_field, names));
  }
  check(field->is_string(), "'", text_field, "' wants a string, found ", field->type_name());
  return field->get<std::string>();
}

std::vector<std::string> read_rows(std::string_view content, const std::string& text_field) {
  std::vector<std::string> texts;
  for_each_row(content, [&](const nlohmann::ordered_json& row, int64_t) {
    texts.push_back(row_text(row, text_field));
  });
  return texts;
}

std::vector<std::string> read_one(const std::string& path, const std::string& text_field) {
  std::string content = read_file(path);
  return with_frame(path, [&]() -> std::vector<std::string> {
    const size_t zero = content.find('\0');
    check(zero == std::string::npos, "byte ", zero, " is zero: this is not a text file");
    if (path.ends_with(".jsonl")) return read_rows(content, text_field);
    return {std::move(content)};
  });
}

/// The first `limit` bytes at most, without a torn UTF-8 character at the end.
void truncate(std::string& text, int64_t limit) {
  if (static_cast<int64_t>(text.size()) <= limit) return;
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xc0) == 0x80) --limit;
  text.resize(limit);
}

}  // namespace

std::vector<std::string> read_documents(const std::vector<std::string>& patterns,
                                        const std::string& text_field, int64_t max_bytes) {
  std::vector<std::string> documents;
  int64_t bytes = 0;
  for (const std::string& path : find_files(patterns)) {
    for (std::string& text : read_one(path, text_field)) {
      if (max_bytes > 0) truncate(text, max_bytes - bytes);
      if (text.empty()) continue;
      bytes += static_cast<int64_t>(text.size());
      documents.push_back(std::move(text));
    }
    if (max_bytes > 0 && bytes >= max_bytes) break;
  }
  return documents;
}

}  // namespace nibble
