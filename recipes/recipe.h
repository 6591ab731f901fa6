// What a person runs: one subcommand, one file, one function.
#pragma once

namespace nibble {

struct Recipe {
  const char* name;
  const char* summary;
  /// argv[0] is the subcommand's name. Returns the exit status; throws Error.
  int (*run)(int argc, char** argv);
};

#define NIBBLE_RECIPE(name, summary) int run_##name(int argc, char** argv);
#define NIBBLE_TORCH_RECIPE NIBBLE_RECIPE
#define NIBBLE_TORCH_PART(name) NIBBLE_RECIPE(name, "")
#include "recipes/recipes.def"
#undef NIBBLE_RECIPE
#undef NIBBLE_TORCH_RECIPE
#undef NIBBLE_TORCH_PART

}  // namespace nibble
