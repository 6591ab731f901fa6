// Where a run folder keeps what export and verify need.
#pragma once

#include <filesystem>
#include <string>

#include "base/error.h"

namespace nibble {

/// The resolved configuration that `nibble run` and `nibble train` leave.
inline std::string run_config_path(const std::string& run_dir) { return run_dir + "/config.yaml"; }

/// What `nibble run` decodes a quantized source to: training starts from it.
inline std::string run_original_path(const std::string& run_dir) {
  return run_dir + "/base-f32.gguf";
}

/// The checkpoint named "last" or "best"; "": the one that ships, which is best where there is one.
/// Throws Error (usage) for another name, and where it is not there.
inline std::string run_checkpoint_path(const std::string& run_dir, const std::string& which) {
  if (!which.empty() && which != "last" && which != "best")
    fail_usage("--checkpoint ", which, ": wanted best or last",
               did_you_mean(which, {"best", "last"}));
  check(std::filesystem::is_directory(run_dir), run_dir, ": no such run folder");
  const auto path_of = [&](const std::string& name) {
    return run_dir + "/checkpoints/" + name + ".safetensors";
  };
  if (which.empty() && std::filesystem::exists(path_of("best"))) return path_of("best");
  const std::string path = path_of(which.empty() ? "last" : which);
  check(std::filesystem::exists(path), path,
        ": no such checkpoint; the run may have ended before its first");
  return path;
}

}  // namespace nibble
