#include "model/chat/chat_tokens.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

/// The text of the first `count` messages; with `answer`, up to where the next one's answer begins.
std::string render_first(const Conversation& conversation, size_t count, bool answer,
                         const ChatTemplate& chat) {
  const auto& all = conversation.messages;
  Json first = Json::array();
  for (size_t i = 0; i < count; ++i) first.push_back(all[i]);
  return chat.render({std::move(first), conversation.tools, answer});
}

/// A conversation that ends with an answer, and the byte at which the answer begins.
struct AnswerText {
  std::string text;
  size_t begin;
};

AnswerText answer_text(const Conversation& conversation, size_t i, const ChatTemplate& chat) {
  const std::string before = render_first(conversation, i, true, chat);
  std::string text = render_first(conversation, i + 1, false, chat);
  check(text.starts_with(before), "message ", i + 1,
        ": the template writes the text before this answer otherwise once it is there");
  return {std::move(text), before.size()};
}

/// Marks the tokens of an answer, from the byte at which it begins to the token that ends it.
void mark_answer(size_t begin, const std::vector<size_t>& ends, const Tokenizer& tokenizer,
                 ChatTokens& tokens) {
  for (size_t i = 0; i < tokens.ids.size(); ++i) {
    const size_t starts = i == 0 ? 0 : ends[i - 1];
    if (starts < begin) continue;
    tokens.trained[i] = 1;
    if (tokenizer.is_end_of_generation(tokens.ids[i])) return;
  }
  fail("no token that ends a generation follows this answer");
}

/// The text's tokens, with the answers that begin at these bytes.
ChatTokens mark(const std::string& text, const std::vector<size_t>& begins,
                const ChatTemplate& chat, const Tokenizer& tokenizer) {
  ChatTokens tokens;
  tokens.ids = chat.encode(text, tokenizer);
  tokens.trained.resize(tokens.ids.size());
  const std::vector<size_t> ends = tokenizer.byte_ends(tokens.ids);
  // A BOS that the tokenizer adds is no part of the text.
  const size_t shift = tokenizer.decode(tokens.ids, /*special=*/true).find(text);
  check(shift != std::string::npos, "the tokenizer does not give the template's text back");
  for (const size_t begin : begins) mark_answer(begin + shift, ends, tokenizer, tokens);
  return tokens;
}

}  // namespace

std::vector<ChatTokens> tokenize_chat(const Conversation& conversation, const ChatTemplate& chat,
                                      const Tokenizer& tokenizer) {
  const size_t count = conversation.messages.size();
  const std::string whole = render_first(conversation, count, false, chat);
  std::vector<AnswerText> answers;
  std::vector<size_t> begins;
  bool together = true;
  for (size_t i = 0; i < count; ++i) {
    if (!conversation.trained[i]) continue;
    answers.push_back(answer_text(conversation, i, chat));
    begins.push_back(answers.back().begin);
    together = together && whole.starts_with(answers.back().text);
  }
  if (together) return {mark(whole, begins, chat, tokenizer)};
  std::vector<ChatTokens> texts;
  for (const AnswerText& answer : answers)
    texts.push_back(mark(answer.text, {answer.begin}, chat, tokenizer));
  return texts;
}

}  // namespace nibble
