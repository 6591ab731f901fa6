// Where a run folder keeps what export and verify need.
#pragma once

#include <filesystem>
#include <string>

#include "base/error.h"

namespace nibble {

/// The resolved configuration that `nibble run` and `nibble train` leave.
inline std::string run_config_path(const std::string& run_dir) { return run_dir + "/config.yaml"; }

/// The checkpoint named "last" or "best". Throws Error (usage) for another name, and where it is
/// not there.
inline std::string run_checkpoint_path(const std::string& run_dir, const std::string& which) {
  if (which != "last" && which != "best")
    fail_usage("--checkpoint ", which, ": wanted best or last",
               did_you_mean(which, {"best", "last"}));
  check(std::filesystem::is_directory(run_dir), run_dir, ": no such run folder");
  const std::string path = run_dir + "/checkpoints/" + which + ".safetensors";
  check(std::filesystem::exists(path), path,
        ": no such checkpoint; the run may have ended before its first");
  return path;
}

}  // namespace nibble
