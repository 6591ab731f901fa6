// Conversations from files: a row of a .jsonl file is one, an element of a .json file's list is
// one.
#pragma once

#include <string>
#include <vector>

#include "model/chat/conversation.h"

namespace nibble {

struct PlacedConversation {
  Conversation conversation;
  std::string place;  // "chat.jsonl: line 7"
};

/// The conversations of all files that the patterns (paths or globs) name, in order (the forms are
/// read_conversation()'s). Throws with path and line, or the number in the list, for a pattern
/// without a file, what is no JSON, and a row of another form.
std::vector<PlacedConversation> read_conversations(const std::vector<std::string>& patterns);

}  // namespace nibble
