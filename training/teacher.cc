#include "training/teacher.h"

#include "base/error.h"

namespace nibble {
namespace {

void check_tokens(const GgufFile& teacher, const GgufFile& source) {
  constexpr const char* kTokens = "tokenizer.ggml.tokens";
  const auto &taught = teacher.metadata().get_strings(kTokens),
             &wanted = source.metadata().get_strings(kTokens);
  check(taught.size() == wanted.size(), "it has ", taught.size(), " tokens, the model ",
        wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i)
    check(taught[i] == wanted[i], "its token ", i, " is '", taught[i], "', the model's '",
          wanted[i], "'");
}

}  // namespace

void check_teacher(const std::string& path, const GgufFile& source) {
  const GgufFile file = GgufFile::open(path);
  check_model(file);
  with_frame(path, [&] { check_tokens(file, source); });
}

std::unique_ptr<Model> load_teacher(const std::string& path, const GgufFile& source,
                                    torch::Device device, bool on_use) {
  check_teacher(path, source);
  return load_model(GgufFile::open(path), device, {.on_use = on_use});
}

}  // namespace nibble
