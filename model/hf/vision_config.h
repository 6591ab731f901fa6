// What a Hugging Face folder says of the part of its model that sees: config.json's vision_config,
// and how pictures are prepared (preprocessor_config.json, processor_config.json).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/ggml_type.h"
#include "io/gguf.h"

namespace nibble {

struct VisionConfig {
  static constexpr int64_t kChannels = 3;
  static constexpr int64_t kFrames = 2;  // that qwen's convolution over time takes at once

  bool is_gemma = false;
  int64_t width = 0, wide = 0, layers = 0, heads = 0;
  int64_t patch = 0, image = 0;  // pixels of a side
  int64_t text_width = 0;
  int64_t merged = 1;  // patches of a side that become one position
  double epsilon = 1e-6;
  std::vector<float> mean, deviation;
  int64_t scale_factor = 0;  // of gemma's projector; 0: what llama.cpp takes without it

  int64_t num_positions() const { return (image / patch) * (image / patch); }
};

/// Throws, naming file or key, for a model that does not see, or one whose tower nibble does not
/// know.
VisionConfig read_vision_config(const std::string& folder, const nlohmann::json& config);

/// general.file_type and the keys clip.*, as llama.cpp's converter writes them.
GgufMetadata vision_metadata(const VisionConfig& config, GgmlType matrix_type);

}  // namespace nibble
