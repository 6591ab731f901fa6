// A C name for chat templates, for tests/interop/test_chat.py to call by ctypes with hundreds of
// templates.
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "model/chat/chat_template.h"

extern "C" {

/// What a template makes of {"messages", "tools", "add_generation_prompt"}, or "error: " and what
/// is wrong; good until this thread's next call.
const char* nibble_render_chat(const char* source, const char* input) {
  thread_local std::string result;
  const auto json = nlohmann::ordered_json::parse(input);
  try {
    result =
        nibble::ChatTemplate(source, "<s>", "</s>")
            .render({json["messages"], json["tools"], json["add_generation_prompt"].get<bool>()});
  } catch (const nibble::Error& error) {
    result = nibble::concat("error: ", error.what());
  }
  return result.c_str();
}

}  // extern "C"
