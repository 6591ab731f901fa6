// nibble tokenize: a text file's token ids, as llama-tokenize --ids prints them.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "io/atomic_file.h"
#include "io/gguf.h"
#include "model/tokenizer.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"

namespace nibble {

int run_tokenize(int argc, char** argv) {
  cxxopts::Options options("nibble tokenize",
                           "The token ids of a text file, equal to llama.cpp's.");
  options.positional_help("MODEL.gguf TEXTFILE");
  options.add_options()("model", "a GGUF file with a tokenizer", cxxopts::value<std::string>())(
      "text", "the text", cxxopts::value<std::string>())(
      "no-special", "add no BOS and EOS, whatever the model says")(
      "no-parse-special", "take the text of control tokens (\"<|im_end|>\") as plain text")(
      "json", "one JSON object: ids, num_tokens");
  options.parse_positional({"model", "text"});
  const auto arguments = parse_arguments(options, argc, argv);
  if (!arguments) return 0;

  const std::string path = required(*arguments, "model", "MODEL.gguf");
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
