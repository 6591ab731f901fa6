// A Modelfile for Ollama beside a GGUF file (source: ollama, docs/modelfile.md and
// template/template.go).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "model/chat/chat_template.h"

namespace nibble {

/// What a chat template puts around messages, where it treats every message alike.
struct ChatFrame {
  struct Role {
    std::string name, before, after;
  };
  std::vector<Role> roles;  // system (where the template takes such messages), user, assistant
  std::string generation;   // what an answer comes after
};

/// By asking the template; nothing where conversations of several turns are not made so (tools,
/// thoughts and default system messages are left aside).
std::optional<ChatFrame> chat_frame(const ChatTemplate& chat);

/// The Modelfile's text for a GGUF file named `file_name` in the same folder. Without a TEMPLATE,
/// which leaves it to Ollama's own guess, where chat_frame() finds none; `note` then says why.
std::string modelfile(const GgufFile& file, const std::string& file_name, std::string& note);

}  // namespace nibble
