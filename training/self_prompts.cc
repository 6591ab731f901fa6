#include "training/self_prompts.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/input_files.h"
#include "model/chat/chat_template.h"
#include "training/text_files.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

SelfPrompt first_token(const Tokenizer& tokenizer) {
  const int32_t id = tokenizer.bos() >= 0 ? tokenizer.bos() : tokenizer.eos();
  check(id >= 0, "the model has no token that begins a text: name self.prompts");
  return {{id}, "", {}};
}

std::vector<SelfPrompt> text_prompts(const std::string& path, const std::string& text_field,
                                     const Tokenizer& tokenizer) {
  std::vector<std::string> texts;
  if (path.ends_with(".jsonl")) {
    texts = read_documents({path}, text_field, 0);
  } else {
    for (const std::string& document : read_documents({path}, "", 0))
      for (size_t begin = 0, end = 0; begin < document.size(); begin = end + 1) {
        end = std::min(document.find('\n', begin), document.size());
        if (end > begin) texts.push_back(document.substr(begin, end - begin));
      }
  }
  std::vector<SelfPrompt> prompts;
  for (const std::string& text : texts) {
    std::vector<int32_t> ids = tokenizer.encode(text, /*add_special=*/true, false);
    // An EOS that the tokenizer adds would end the text.
    while (ids.size() > 1 && tokenizer.is_end_of_generation(ids.back())) ids.pop_back();
    std::string decoded = tokenizer.decode(ids);
    prompts.push_back({std::move(ids), std::move(decoded), {}});
  }
  return prompts;
}

std::vector<SelfPrompt> chat_prompts(const std::string& path, const GgufMetadata& metadata,
                                     const Tokenizer& tokenizer) {
  const ChatTemplate chat = ChatTemplate::from_metadata(metadata, tokenizer);
  std::vector<SelfPrompt> prompts;
  for_each_row(read_file(path), [&](const Json& row, int64_t) {
    check(row.is_object() && row.contains("messages") && row["messages"].is_array(),
          "wants an object with a list of messages");
    Json messages = row["messages"];
    while (!messages.empty() && messages.back().is_object() &&
           messages.back().value("role", Json()) == "assistant")
      messages.erase(messages.size() - 1);
    check(!messages.empty(), "has no message that an assistant could answer");
    const Json tools = row.contains("tools") ? row["tools"] : Json();
    Json kept = {{"messages", messages}};
    if (!tools.is_null()) kept["tools"] = tools;
    prompts.push_back({chat.encode(chat.render({std::move(messages), tools, true}), tokenizer), "",
                       std::move(kept)});
  });
  return prompts;
}

}  // namespace

std::vector<SelfPrompt> read_self_prompts(const std::string& path, const DataOptions& options,
                                          const GgufMetadata& metadata,
                                          const Tokenizer& tokenizer) {
  if (path.empty()) return {first_token(tokenizer)};
  return with_frame(path, [&] {
    std::vector<SelfPrompt> prompts = options.is_chat()
                                          ? chat_prompts(path, metadata, tokenizer)
                                          : text_prompts(path, options.text_field, tokenizer);
    check(!prompts.empty(), "has no prompt");
    for (size_t i = 0; i < prompts.size(); ++i)
      check(static_cast<int64_t>(prompts[i].ids.size()) < options.sequence_length, "prompt ", i + 1,
            " has ", prompts[i].ids.size(), " tokens, wanted less than data.sequence_length ",
            options.sequence_length);
    return prompts;
  });
}

}  // namespace nibble
