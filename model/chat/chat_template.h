// A model's chat template: a conversation -> the text that it was trained on and is served with, as
// transformers' apply_chat_template() renders it (source: transformers,
// docs/source/en/chat_templating.md).
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "io/gguf.h"
#include "model/chat/nodes.h"
#include "model/tokenizer.h"

namespace nibble {

struct ChatInput {
  nlohmann::ordered_json messages;  // a list of {"role", "content", ...}
  nlohmann::ordered_json tools;     // a list of functions' JSON schemas, or null
  /// Whether the text goes on to where an answer begins.
  bool add_generation_prompt = false;
};

class ChatTemplate {
 public:
  /// bos, eos: texts of these tokens, as the template may write them. Throws Error with the
  /// template's line for what is no Jinja, and for what of it nibble's engine does not know.
  ChatTemplate(std::string_view source, std::string bos, std::string eos);
  /// tokenizer.chat_template. Throws where there is none.
  static ChatTemplate from_metadata(const GgufMetadata& metadata, const Tokenizer& tokenizer);

  const std::string& bos() const { return bos_; }
  /// Throws Error with the template's line where it refuses the conversation.
  std::string render(const ChatInput& input) const;
  /// Its ids with one BOS at most: the template's own gives way to the tokenizer's, as in
  /// llama.cpp.
  std::vector<int32_t> encode(const std::string& rendered, const Tokenizer& tokenizer) const;

 private:
  std::string bos_, eos_;
  jinja::Statements statements_;
};

}  // namespace nibble
