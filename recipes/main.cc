// nibble and nibble-torch: picks the subcommand and turns an Error into one line on stderr and an
// exit status.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/stop_signal.h"
#include "base/version.h"
#include "recipes/recipe.h"

namespace {

const std::vector<nibble::Recipe> kRecipes = {
#define NIBBLE_RECIPE(name, summary) {#name, summary, nibble::run_##name},
#define NIBBLE_TORCH_RECIPE NIBBLE_RECIPE
#define NIBBLE_TORCH_PART(name)
#include "recipes/recipes.def"
#undef NIBBLE_RECIPE
#undef NIBBLE_TORCH_RECIPE
#undef NIBBLE_TORCH_PART
};

void print_usage(std::FILE* out) {
  std::fprintf(out,
               "nibble: train language models onto GGUF's grids and ship the bytes you trained\n\n"
               "usage: nibble COMMAND [ARGUMENTS]     nibble COMMAND --help\n\n");
  for (const nibble::Recipe& recipe : kRecipes)
    std::fprintf(out, "  %-12s %s\n", recipe.name, recipe.summary);
}

int run(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  if (name.empty() || name == "--help" || name == "-h" || name == "help") {
    print_usage(name.empty() ? stderr : stdout);
    return name.empty() ? 2 : 0;
  }
  if (name == "--version") {
    std::printf("nibble %s\n", nibble::kProgramVersion);
    return 0;
  }
  std::vector<std::string> names;
  for (const nibble::Recipe& recipe : kRecipes) {
    if (name == recipe.name)
      return nibble::with_frame(name, [&] { return recipe.run(argc - 1, argv + 1); });
    names.push_back(recipe.name);
  }
  nibble::fail_usage("no command '", name, "'", nibble::did_you_mean(name, names),
                     "; see nibble --help");
}

}  // namespace

int main(int argc, char** argv) {
  nibble::handle_signals();
  try {
    const int status = run(argc, argv);
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
      nibble::fail("standard output: cannot write: ", std::strerror(errno));
    return status;
  } catch (const nibble::Error& error) {
    std::fprintf(stderr, "nibble: %s\n", error.what());
    return error.exit_code();
  } catch (const std::exception& error) {
    std::string line = error.what();
    line.resize(std::min(line.find('\n'), line.size()));
    std::fprintf(stderr, "nibble: %s\n", line.c_str());
    return 1;
  }
}
