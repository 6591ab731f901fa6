// nibble generate: one prompt continued by one or several models, one after the other.
#include "model/generate.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf.h"
#include "model/chat/chat_template.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

constexpr const char* kExamples =
    "\nA model with a chat template is asked the prompt as a user's message; --raw goes on from "
    "the prompt as it is.\n"
    "The text of control tokens (\"<|im_start|>\") becomes these tokens, BOS is added where the "
    "model adds one.\n"
    "\nexamples:\n"
    "  nibble generate model.gguf -p \"Once upon a time\"\n"
    "  nibble generate f32.gguf q4_0.gguf qat.gguf -p \"The capital of France is\" -n 32 --raw\n";

struct Prompt {
  std::string text, system;
  bool raw = false;  // no chat template
};

struct Continuation {
  std::string path, text;
  std::vector<int32_t> ids;
  int64_t bytes = 0;  // of the file
  double seconds = 0;
};

bool is_chat(const Prompt& prompt, const GgufMetadata& metadata) {
  return !prompt.raw && metadata.contains("tokenizer.chat_template");
}

std::vector<int32_t> prompt_ids(const Prompt& prompt, const GgufMetadata& metadata,
                                const Tokenizer& tokenizer) {
  if (!is_chat(prompt, metadata)) {
    check(prompt.system.empty(), "has no chat template, which --system is for");
    return tokenizer.encode(prompt.text, true, true);
  }
  ChatInput input = {nlohmann::ordered_json::array(), {}, /*add_generation_prompt=*/true};
  if (!prompt.system.empty())
    input.messages.push_back({{"role", "system"}, {"content", prompt.system}});
  input.messages.push_back({{"role", "user"}, {"content", prompt.text}});
  const ChatTemplate chat = ChatTemplate::from_metadata(metadata, tokenizer);
  return chat.encode(chat.render(input), tokenizer);
}

/// `show` is called with each bit of text as it comes, the prompt first.
Continuation continue_prompt(const std::string& path, const Prompt& prompt,
                             const GenerateOptions& options,
                             const std::function<void(std::string_view)>& show) {
  const GgufFile file = GgufFile::open(find_model(path));
  const auto tokenizer =
      with_frame(path, [&] { return Tokenizer::from_metadata(file.metadata()); });
  const auto model = load_model(file);
  std::vector<int32_t> all =
      with_frame(path, [&] { return prompt_ids(prompt, file.metadata(), *tokenizer); });
  // Decoded from the start: a sentencepiece text's first space is not part of it.
  const size_t prompt_end = tokenizer->decode(all).size();
  Continuation result;
  result.path = path;
  result.bytes = file.file_bytes();
  show(prompt.text);
  if (is_chat(prompt, file.metadata())) show("\n\n");
  size_t shown = prompt_end;
  const auto start = std::chrono::steady_clock::now();
  result.ids = generate(*model, *tokenizer, all, options, [&](int32_t id) {
    all.push_back(id);
    const std::string text = tokenizer->decode(all);
    show(std::string_view(text).substr(shown));
    shown = text.size();
  });
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  result.seconds = taken.count();
  result.text = tokenizer->decode(all).substr(prompt_end);
  return result;
}

/// How many ids two continuations begin with in common.
int64_t common_start(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

nlohmann::ordered_json to_json(const std::string& prompt, const std::vector<Continuation>& all) {
  nlohmann::ordered_json models = nlohmann::ordered_json::array();
  for (const Continuation& each : all)
    models.push_back({{"name", std::filesystem::path(each.path).filename().string()},
                      {"path", each.path},
                      {"bytes", each.bytes},
                      {"text", each.text},
                      {"ids", each.ids},
                      {"same_start", common_start(all[0].ids, each.ids)},
                      {"tokens_per_second", static_cast<double>(each.ids.size()) / each.seconds},
                      {"seconds", each.seconds}});
  return {{"prompt", prompt}, {"models", models}};
}

void print_footer(const Continuation& each, const Continuation& first) {
  std::printf("\n   [%zu tokens, %.1f/s", each.ids.size(),
              static_cast<double>(each.ids.size()) / each.seconds);
  if (&each != &first)
    std::printf("; the first %lld as above in %s",
                static_cast<long long>(common_start(first.ids, each.ids)),
                std::filesystem::path(first.path).filename().c_str());
  std::printf("]\n\n");
}

}  // namespace

int run_generate(int argc, char** argv) {
  cxxopts::Options options("nibble generate", "The same prompt continued by each model.");
  options.positional_help("MODEL.gguf...");
  options.add_options()("models", "GGUF files", cxxopts::value<std::vector<std::string>>())(
      "p,prompt", "what to go on from", cxxopts::value<std::string>())(
      "n,max-tokens", "tokens to add at most", cxxopts::value<int64_t>()->default_value("64"))(
      "temp", "temperature; 0: the likeliest token every time",
      cxxopts::value<std::string>()->default_value("0"))(
      "seed", "of the draws at a temperature above 0",
      cxxopts::value<uint64_t>()->default_value("0"))(
      "raw", "no chat template: go on from the prompt as it is")(
      "system", "a system message before the prompt, where there is a chat template",
      cxxopts::value<std::string>(),
      "TEXT")("json", "one JSON object: prompt, models: [name, text, ids, ...]");
  options.parse_positional({"models"});
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;
  if (arguments->count("models") == 0) fail_usage("no MODEL.gguf given; see --help");
  const Prompt prompt = {required(*arguments, "prompt", "--prompt"),
                         text_or_empty(*arguments, "system"), arguments->count("raw") > 0};
  if (prompt.raw && !prompt.system.empty()) fail_usage("--system is no part of a --raw prompt");
  const GenerateOptions how = {.max_tokens = (*arguments)["max-tokens"].as<int64_t>(),
                               .temperature = number_argument(*arguments, "temp"),
                               .seed = (*arguments)["seed"].as<uint64_t>()};
  if (how.max_tokens < 1) fail_usage("--max-tokens wants 1 or more, found ", how.max_tokens);

  const bool json = arguments->count("json") > 0;
  std::vector<Continuation> all;
  for (const std::string& path : (*arguments)["models"].as<std::vector<std::string>>()) {
    if (!json) std::printf("== %s\n", path.c_str());
    all.push_back(continue_prompt(path, prompt, how, [&](std::string_view text) {
      if (json) return;
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    }));
    if (!json) print_footer(all.back(), all.front());
  }
  // A continuation may end inside a character.
  if (json)
    std::printf("%s\n", to_json(prompt.text, all)
                            .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                            .c_str());
  return 0;
}

}  // namespace nibble
