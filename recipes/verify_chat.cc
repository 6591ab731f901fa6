// nibble verify --chat: what a file's chat template and tokenizer make of conversations.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/gguf.h"
#include "model/chat/chat_files.h"
#include "model/chat/chat_tokens.h"
#include "model/tokenizer.h"
#include "recipes/verify.h"

namespace nibble {
namespace {

struct ChatVerification {
  int64_t conversations = 0, texts = 0, tokens = 0, trained = 0, longest = 0;
  std::vector<std::string> problems;
};

/// What is wrong with the BOS of a text's ids; "" where nothing is.
std::string bos_problem(const std::vector<int32_t>& ids, const Tokenizer& tokenizer) {
  const int32_t bos = tokenizer.bos();
  if (bos < 0 || ids.empty()) return "";
  if (tokenizer.add_bos() && ids[0] != bos) return "does not begin with BOS, which the model wants";
  if (ids.size() > 1 && ids[0] == bos && ids[1] == bos) return "begins with two BOS";
  return "";
}

void verify_conversation(const PlacedConversation& each, const ChatTemplate& chat,
                         const Tokenizer& tokenizer, ChatVerification& result) {
  ++result.conversations;
  try {
    for (const ChatTokens& text : tokenize_chat(each.conversation, chat, tokenizer)) {
      const auto size = static_cast<int64_t>(text.ids.size());
      ++result.texts;
      result.tokens += size;
      result.trained += std::accumulate(text.trained.begin(), text.trained.end(), int64_t{0});
      result.longest = std::max(result.longest, size);
      const std::string problem = bos_problem(text.ids, tokenizer);
      if (!problem.empty()) result.problems.push_back(each.place + ": " + problem);
    }
  } catch (const Error& error) {
    result.problems.push_back(each.place + ": " + error.what());
  }
}

void print_json(const VerifyArguments& arguments, const ChatVerification& result) {
  const nlohmann::ordered_json json = {{"path", arguments.path},
                                       {"chat", arguments.chat},
                                       {"passed", result.problems.empty()},
                                       {"conversations", result.conversations},
                                       {"texts", result.texts},
                                       {"tokens", result.tokens},
                                       {"trained_tokens", result.trained},
                                       {"longest", result.longest},
                                       {"problems", result.problems}};
  std::printf("%s\n",
              json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
}

void print_text(const VerifyArguments& arguments, const ChatVerification& result) {
  for (const std::string& problem : result.problems) std::printf("  %s\n", problem.c_str());
  const double share = result.tokens > 0 ? 100.0 * static_cast<double>(result.trained) /
                                               static_cast<double>(result.tokens)
                                         : 0;
  std::printf("%s: the chat template %s\n", arguments.path.c_str(),
              result.problems.empty() ? "holds" : "does NOT hold");
  std::printf(
      "  %lld conversations as %lld texts, %lld tokens (the longest %lld), of which %.1f %% are an "
      "assistant's\n",
      static_cast<long long>(result.conversations), static_cast<long long>(result.texts),
      static_cast<long long>(result.tokens), static_cast<long long>(result.longest), share);
  if (!result.problems.empty())
    std::printf("  %zu problems: such conversations cannot be trained on\n",
                result.problems.size());
}

}  // namespace

int verify_chat(const VerifyArguments& arguments) {
  const GgufFile file = GgufFile::open(arguments.path);
  ChatVerification result;
  with_frame(arguments.path, [&] {
    const auto tokenizer = Tokenizer::from_metadata(file.metadata());
    const ChatTemplate chat = ChatTemplate::from_metadata(file.metadata(), *tokenizer);
    for (const PlacedConversation& each : read_conversations({arguments.chat}))
      verify_conversation(each, chat, *tokenizer, result);
  });
  if (arguments.json)
    print_json(arguments, result);
  else
    print_text(arguments, result);
  return result.problems.empty() ? 0 : 1;
}

}  // namespace nibble
