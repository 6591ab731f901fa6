// A conversation as the tokens that a model is trained on: those of its assistant's answers, up to
// the token that ends each generation, count in the loss.
#pragma once

#include <cstdint>
#include <vector>

#include "model/chat/chat_template.h"
#include "model/chat/conversation.h"
#include "model/tokenizer.h"

namespace nibble {

struct ChatTokens {
  std::vector<int32_t> ids;
  std::vector<uint8_t> trained;  // of each id: 1 where a model is to say it
};

/// One text for the whole conversation. Where the template writes earlier turns otherwise once a
/// conversation goes on, one for each answer with what leads to it: a model is asked for an answer
/// with exactly the text before it. Throws Error, with the message's number, where even the text up
/// to an answer is no beginning of the text with it, and where no token that ends a generation
/// follows an answer.
std::vector<ChatTokens> tokenize_chat(const Conversation& conversation, const ChatTemplate& chat,
                                      const Tokenizer& tokenizer);

}  // namespace nibble
