// Stands in, in the program nibble, for the recipes that need LibTorch: goes on with the same
// arguments as nibble-torch, the program beside it that has them.
//
// LibTorch's libraries take 0.2 s to load, which quantizing or inspecting a file should not wait
// for. exec() keeps process id, terminal and environment, so that exit status and signals are the
// other program's own.
#include <unistd.h>

#include <cerrno>  // program_invocation_name
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

int run_with_torch(int argc, char** argv) {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) fail("/proc/self/exe: cannot read: ", error.message());
  const std::string program = self.parent_path() / "nibble-torch";
  std::vector<char*> arguments = {program_invocation_name};
  arguments.insert(arguments.end(), argv, argv + argc);
  arguments.push_back(nullptr);
  ::execv(program.c_str(), arguments.data());
  if (errno == ENOENT)
    fail_usage("this build of nibble has no LibTorch; scripts/setup builds one that has");
  fail(program, ": cannot start: ", std::strerror(errno));
}

}  // namespace

#define NIBBLE_RECIPE(name, summary)
#define NIBBLE_TORCH_RECIPE(name, summary) \
  int run_##name(int argc, char** argv) { return run_with_torch(argc, argv); }
#define NIBBLE_TORCH_PART(name) NIBBLE_TORCH_RECIPE(name, "")
#include "recipes/recipes.def"
#undef NIBBLE_RECIPE
#undef NIBBLE_TORCH_RECIPE
#undef NIBBLE_TORCH_PART

}  // namespace nibble
