// Where a run folder keeps what export and verify need.
#pragma once

#include <filesystem>
#include <string>

#include "base/error.h"
#include "configs/config.h"
#include "io/atomic_file.h"
#include "model/hf/convert.h"

namespace nibble {

/// The resolved configuration that `nibble run` and `nibble train` leave.
inline std::string run_config_path(const std::string& run_dir) { return run_dir + "/config.yaml"; }

/// Makes the folder, removes what killed processes left unfinished in it, and writes config.yaml
/// and plan.json, except where a stopped run is gone on with: its own stay until train() has
/// accepted the configuration.
inline void start_run_folder(const std::string& run_dir, const std::string& config_yaml,
                             const std::string& plan_json, bool resume) {
  const auto has = [&](const std::string& name) {
    return std::filesystem::exists(run_dir + '/' + name);
  };
  create_folders(run_dir);
  remove_unfinished(run_dir);
  remove_unfinished(run_dir + "/checkpoints");
  const bool has_checkpoint =
      has("checkpoints/last.safetensors") || has("checkpoints/previous.safetensors");
  if (!resume || !has_checkpoint || !has("config.yaml"))
    write_file(run_config_path(run_dir), config_yaml);
  if (!resume || !has_checkpoint || !has("plan.json"))
    write_file(run_dir + "/plan.json", plan_json);
}

/// The float32 file that training starts from where that is not the configuration's own: what
/// `nibble run` decodes a quantized source to, or a new model.
inline std::string run_original_path(const std::string& run_dir) {
  return run_dir + "/base-f32.gguf";
}

/// A Hugging Face folder as model becomes the GGUF file in the run folder that it is converted to,
/// with what the configuration wants merged and carried through; anew except where a stopped run is
/// gone on with. Other models stay.
inline void convert_model(RunConfig& config, bool resume) {
  if (!is_hf_folder(config.model)) return;
  const std::string path = config.output + '/' + hf_folder_name(config.model) + ".gguf";
  if (!resume || !std::filesystem::exists(path)) {
    create_folders(config.output);
    HfConversion options;
    options.adapter = config.adapter;
    options.has_mtp = config.mtp;
    convert_hf(config.model, path, options);
  }
  config.model = path;
  config.adapter.clear();  // they are in the file now
  config.mtp = false;
}

/// The checkpoint named "last" or "best"; "": the one that ships, which is best where there is one,
/// and the one before last where a kill left no other.
/// Throws Error (usage) for another name, and where it is not there.
inline std::string run_checkpoint_path(const std::string& run_dir, const std::string& which) {
  if (!which.empty() && which != "last" && which != "best")
    fail_usage("--checkpoint ", which, ": wanted best or last",
               did_you_mean(which, {"best", "last"}));
  check(std::filesystem::is_directory(run_dir), run_dir, ": no such run folder");
  const auto path_of = [&](const std::string& name) {
    return run_dir + "/checkpoints/" + name + ".safetensors";
  };
  if (which.empty())
    for (const char* name : {"best", "last", "previous"})
      if (std::filesystem::exists(path_of(name))) return path_of(name);
  const std::string path = path_of(which.empty() ? "last" : which);
  check(std::filesystem::exists(path), path,
        ": no such checkpoint; the run may have ended before its first");
  return path;
}

}  // namespace nibble
