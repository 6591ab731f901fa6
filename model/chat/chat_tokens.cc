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

/// Finds the token with which an answer begins; where one goes over the place, the next.
class AnswerPlaces {
 public:
  AnswerPlaces(const std::string& text, const std::vector<int32_t>& ids, const ChatTemplate& chat,
               const Tokenizer& tokenizer)
      : text_(text), ids_(ids), chat_(chat), tokenizer_(tokenizer) {
    ends_ = tokenizer.byte_ends(ids);
    // A BOS that the tokenizer adds is no part of the text.
    shift_ = tokenizer.decode(ids, /*special=*/true).find(text);
  }

  size_t find(size_t byte) const {
    if (shift_ == std::string::npos) return find_by_text_before(byte);
    const size_t wanted = byte + shift_;
    if (wanted == 0) return 0;
    const auto end = std::lower_bound(ends_.begin(), ends_.end(), wanted);
    return static_cast<size_t>(end - ends_.begin()) + 1;
  }

 private:
  /// For a tokenizer that replaces characters or drops spaces, and so does not give the text back.
  size_t find_by_text_before(size_t byte) const {
    std::vector<int32_t> before = chat_.encode(text_.substr(0, byte), tokenizer_);
    const size_t added = tokenizer_.encode("", /*add_special=*/true, true).size();
    if (added > (tokenizer_.add_bos() ? 1 : 0)) before.pop_back();  // an EOS
    const auto [other, unused] =
        std::mismatch(before.begin(), before.end(), ids_.begin(), ids_.end());
    return static_cast<size_t>(other - before.begin()) + (other == before.end() ? 0 : 1);
  }

  const std::string& text_;
  const std::vector<int32_t>& ids_;
  const ChatTemplate& chat_;
  const Tokenizer& tokenizer_;
  std::vector<size_t> ends_;
  size_t shift_;
};

/// Marks the tokens of an answer, from its first to the one that ends it.
void mark_answer(size_t first, const Tokenizer& tokenizer, ChatTokens& tokens) {
  for (size_t i = first; i < tokens.ids.size(); ++i) {
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
  const AnswerPlaces places(text, tokens.ids, chat, tokenizer);
  for (const size_t begin : begins) mark_answer(places.find(begin), tokenizer, tokens);
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
