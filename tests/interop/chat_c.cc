// C names for what chat is made of, for tests/interop to call by ctypes: hundreds of templates, and
// every token of a vocabulary.
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "io/gguf.h"
#include "model/chat/chat_template.h"
#include "model/tokenizer.h"

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

/// Sets ends[id], 0 or 1, for each token of a GGUF file: whether it ends a generation.
void nibble_ends_of_generation(const char* path, unsigned char* ends) {
  const auto tokenizer = nibble::Tokenizer::from_metadata(nibble::GgufFile::open(path).metadata());
  for (int32_t id = 0; id < tokenizer->vocab_size(); ++id)
    ends[id] = tokenizer->is_end_of_generation(id) ? 1 : 0;
}

}  // extern "C"
