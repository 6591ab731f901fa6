// The text that a run's model writes for its own training, in the run folder.
#pragma once

#include <filesystem>

#include "base/error.h"
#include "configs/config.h"
#include "io/gguf.h"
#include "recipes/run_folder.h"
#include "training/self_text.h"

namespace nibble {

/// Whether the run in the folder has the text already. Before start_run_folder(). Throws Error
/// (usage) where the run is gone on with and had it written otherwise.
inline bool has_self_text(const RunConfig& config, bool resume) {
  const std::string path = run_config_path(config.output);
  if (!config.writes_text() || !resume || !std::filesystem::exists(path)) return false;
  if (load_config(path).self != config.self)
    fail_usage("self: differs from that of the run in '", config.output,
               "'; train without --resume, or in a new folder");
  return true;
}

}  // namespace nibble
