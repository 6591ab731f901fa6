// nibble tokenize: a text file's token ids, as llama-tokenize --ids prints them; or conversations
// as they are trained.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "io/atomic_file.h"
#include "io/gguf.h"
#include "model/chat/chat_files.h"
#include "model/chat/chat_tokens.h"
#include "model/tokenizer.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

constexpr const char* kExamples =
    "\n--chat writes a line of JSON for each text that training would see: its place in the file, "
    "the text that the\n"
    "model's template makes, its ids, and of each id whether it counts in the loss (1: the "
    "assistant says it).\n"
    "\nexamples:\n"
    "  nibble tokenize model.gguf text.txt\n"
    "  nibble tokenize model.gguf --chat conversations.jsonl\n";

void print_chats(const GgufMetadata& metadata, const std::string& path) {
  const auto tokenizer = Tokenizer::from_metadata(metadata);
  const ChatTemplate chat = ChatTemplate::from_metadata(metadata, *tokenizer);
  for (const PlacedConversation& each : read_conversations({path}))
    with_frame(each.place, [&] {
      for (const ChatTokens& tokens : tokenize_chat(each.conversation, chat, *tokenizer)) {
        const nlohmann::ordered_json line = {
            {"place", each.place},
            {"text", tokenizer->decode(tokens.ids, /*special=*/true)},
            {"ids", tokens.ids},
            {"trained", tokens.trained}};
        std::printf("%s\n", line.dump().c_str());
      }
    });
}

}  // namespace

int run_tokenize(int argc, char** argv) {
  cxxopts::Options options("nibble tokenize",
                           "The token ids of a text file, equal to llama.cpp's.");
  options.positional_help("MODEL.gguf TEXTFILE");
  options.add_options()("model", "a GGUF file with a tokenizer", cxxopts::value<std::string>())(
      "text", "the text", cxxopts::value<std::string>())(
      "chat", "conversations instead, through the model's chat template",
      cxxopts::value<std::string>(),
      "FILE.jsonl")("no-special", "add no BOS and EOS, whatever the model says")(
      "no-parse-special", "take the text of control tokens (\"<|im_end|>\") as plain text")(
      "json", "one JSON object: ids, num_tokens");
  options.parse_positional({"model", "text"});
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;

  const std::string path = model_argument(*arguments, "model", "MODEL.gguf");
  if (arguments->count("chat") > 0) {
    if (arguments->count("text") > 0) fail_usage("--chat takes the place of TEXTFILE");
    const GgufFile model = GgufFile::open(path);
    print_chats(model.metadata(), (*arguments)["chat"].as<std::string>());
    return 0;
  }
  const std::string text = read_file(required(*arguments, "text", "TEXTFILE"));
  const GgufFile file = GgufFile::open(path);
  const std::vector<int32_t> ids = with_frame(path, [&] {
    return Tokenizer::from_metadata(file.metadata())
        ->encode(text, arguments->count("no-special") == 0,
                 arguments->count("no-parse-special") == 0);
  });
  if (arguments->count("json") > 0) {
    std::printf("%s\n", nlohmann::json{{"ids", ids}, {"num_tokens", ids.size()}}.dump().c_str());
    return 0;
  }
  std::string line = "[";
  for (size_t i = 0; i < ids.size(); ++i) line += (i > 0 ? ", " : "") + std::to_string(ids[i]);
  std::printf("%s]\n", line.c_str());
  return 0;
}

}  // namespace nibble
