#include "model/chat/chat_files.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/input_files.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

void read_list(const std::string& content, const std::string& path,
               std::vector<PlacedConversation>& all) {
  const Json list = Json::parse(content, nullptr, /*allow_exceptions=*/false);
  check(!list.is_discarded(), "is not JSON");
  check(list.is_array(), "wants a list of conversations, found ", list.type_name());
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string place = concat("conversation ", i + 1);
    all.push_back(
        {with_frame(place, [&] { return read_conversation(list[i]); }), path + ": " + place});
  }
}

void read_lines(const std::string& content, const std::string& path,
                std::vector<PlacedConversation>& all) {
  for_each_row(content, [&](const Json& row, int64_t line) {
    all.push_back({read_conversation(row), concat(path, ": line ", line)});
  });
}

}  // namespace

std::vector<PlacedConversation> read_conversations(const std::vector<std::string>& patterns) {
  std::vector<PlacedConversation> all;
  for (const std::string& path : find_files(patterns)) {
    const std::string content = read_file(path);
    with_frame(path, [&] {
      if (path.ends_with(".jsonl"))
        read_lines(content, path, all);
      else if (path.ends_with(".json"))
        read_list(content, path, all);
      else
        fail("chat data is a .jsonl file (a conversation a line) or a .json file (a list of them)");
    });
  }
  return all;
}

}  // namespace nibble
