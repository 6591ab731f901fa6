// Rows of chat data: conversations as `messages`, and the forms that other tools write.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

namespace nibble {

struct Conversation {
  nlohmann::ordered_json messages;  // a list of {"role", "content", ...}
  nlohmann::ordered_json tools;     // or null
  std::vector<bool> trained;        // of each message: an assistant's, unless its loss_weight is 0
};

/// One row: {"messages": [{"role", "content"}, ...]}, ShareGPT's {"conversations": [{"from",
/// "value"}, ...]}, alpaca's
/// {"instruction", "input", "output"} or {"prompt", "response"} (or "completion"), each also with
/// "system" and "tools". A message's content that is a list of parts of text becomes one text.
/// Throws Error for a row of another form, a message without role or text, a part that is no text,
/// and a row in which no assistant says anything.
Conversation read_conversation(const nlohmann::ordered_json& row);

}  // namespace nibble
