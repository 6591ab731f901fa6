#include "model/chat/chat_template.h"

#include <utility>

#include "base/error.h"
#include "model/chat/parser.h"

namespace nibble {
namespace {

/// The largest known ones have 20 kB.
constexpr size_t kMaxBytes = 1 << 20;

}  // namespace

ChatTemplate::ChatTemplate(std::string_view source, std::string bos, std::string eos)
    : bos_(std::move(bos)), eos_(std::move(eos)) {
  with_frame("chat template", [&] {
    check(source.size() <= kMaxBytes, source.size(), " bytes are too many");
    statements_ = jinja::parse(source);
  });
}

ChatTemplate ChatTemplate::from_metadata(const GgufMetadata& metadata, const Tokenizer& tokenizer) {
  check(metadata.contains("tokenizer.chat_template"),
        "the model has no chat template (metadata key 'tokenizer.chat_template')");
  const auto text = [&](int32_t id) {
    return id < 0 ? "" : tokenizer.decode({id}, /*special=*/true);
  };
  return {metadata.get_string("tokenizer.chat_template"), text(tokenizer.bos()),
          text(tokenizer.eos())};
}

std::string ChatTemplate::render(const ChatInput& input) const {
  return with_frame("chat template", [&] {
    jinja::Budget budget;
    jinja::Context context = {std::make_shared<jinja::Scope>(), &budget};
    context.scope->set("messages", jinja::Value::from_json(input.messages));
    context.scope->set("tools", jinja::Value::from_json(input.tools));
    context.scope->set("documents", jinja::None{});
    context.scope->set("add_generation_prompt", input.add_generation_prompt);
    context.scope->set("bos_token", bos_);
    context.scope->set("eos_token", eos_);
    std::string text;
    jinja::run_all(statements_, context, text);
    return text;
  });
}

std::vector<int32_t> ChatTemplate::encode(const std::string& rendered,
                                          const Tokenizer& tokenizer) const {
  std::string_view text = rendered;
  if (tokenizer.add_bos() && !bos_.empty() && text.starts_with(bos_))
    text.remove_prefix(bos_.size());
  return tokenizer.encode(text, /*add_special=*/true, /*parse_special=*/true);
}

}  // namespace nibble
