// A Hugging Face folder into one GGUF file, in the layout that llama.cpp and nibble compute with:
// rows of q and k in GGUF's order, norms and biases float32, matrices as they are stored or in one
// other float type, 4-bit codes in blocks that have the same codes. Keys and tensor bytes are those
// of llama.cpp's own converter (docs/ architecture.md says where not). Tensors pass through in
// pieces: the file may be larger than memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/ggml_type.h"

namespace nibble {

/// Whether `path` is a folder with a config.json.
bool is_hf_folder(const std::string& path);
/// "Qwen3-4B": the last part of its path, which names the model.
std::string hf_folder_name(const std::string& folder);

struct HfConversion {
  /// F32, F16 or BF16, of all matrices; nothing: the type of the first one, by name, and of those
  /// that are packed the block type that has their codes.
  std::optional<GgmlType> matrix_type;
  std::string pre;  // tokenizer.ggml.pre, where the tokenizer is not recognized; "": by itself
  std::string adapter{};       // folder of a PEFT adapter to merge; "": none
  int64_t max_part_bytes = 0;  // of tensor data in one file; 0: there is one
  bool has_mtp = false;        // with the layers that predict further tokens
  bool has_tower = false;      // the part that sees is in a file of its own
};

/// How far packed weights were moved, by scales and minimums that float16 cannot hold.
struct HfRounding {
  double largest = 0, largest_in_steps = 0;
  void add(const HfRounding& other) {
    largest = std::max(largest, other.largest);
    largest_in_steps = std::max(largest_in_steps, other.largest_in_steps);
  }
};

struct HfConverted {
  std::string family;                      // "LlamaForCausalLM"
  GgmlType matrix_type = GgmlType::kF32;   // that of most packed matrices, where there are any
  int64_t num_packed = 0, num_merged = 0;  // matrices: of codes, with an adapter's update
  HfRounding rounding;
  int64_t num_tensors = 0, num_weights = 0, bytes = 0;  // bytes: of tensor data
  std::vector<std::string> paths;                       // that were written
  double seconds = 0;
};

/// Writes `out`, or its parts, aside and renames. Throws Error with the file, and key or tensor,
/// where one is missing, has another shape than config.json says, or is of a family or kind that
/// nibble lacks.
HfConverted convert_hf(const std::string& folder, const std::string& out,
                       const HfConversion& options);

}  // namespace nibble
