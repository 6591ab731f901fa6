// The part of a Hugging Face model that sees: SigLIP with gemma3's projector, and qwen3.5's tower.
// llama.cpp wants it as a GGUF file of its own beside the model's (--mmproj); nibble carries it
// through and computes nothing with it. Keys and tensor bytes are those of llama.cpp's own
// converter. Source: gguf-py gguf/constants.py (Keys.ClipVision), gguf/tensor_mapping.py;
// tools/mtmd/clip.cpp for what is float32.
#pragma once

#include <optional>
#include <string>

#include "model/hf/convert.h"

namespace nibble {

/// Whether a tensor of a checkpoint belongs to it, by its name there.
bool is_of_vision_tower(const std::string& name);

/// Writes `out` aside and renames it. matrix_type: F32, F16, BF16, or nothing: as the first matrix
/// of the checkpoint is stored. Throws Error with the file, and key or tensor, where the folder has
/// no tower, another's than those above, or one whose tensors are not those that config.json says.
HfConverted convert_vision_tower(const std::string& folder, const std::string& out,
                                 std::optional<GgmlType> matrix_type);

}  // namespace nibble
