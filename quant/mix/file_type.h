// The file types that llama-quantize makes: names, numbers (llama_ftype in llama.cpp
// include/llama.h) and the tensor type that each is a mix around (llama_ftype_get_default_type in
// src/llama-quant.cpp), in the order in which its --help lists them.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "io/ggml_type.h"

namespace nibble {

enum class FileType : int {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ8_0 = 7,
  kQ5_0 = 8,
  kQ5_1 = 9,
  kQ2_K = 10,
  kQ3_K_S = 11,
  kQ3_K_M = 12,
  kQ3_K_L = 13,
  kQ4_K_S = 14,
  kQ4_K_M = 15,
  kQ5_K_S = 16,
  kQ5_K_M = 17,
  kQ6_K = 18,
  kIQ2_XXS = 19,
  kIQ2_XS = 20,
  kQ2_K_S = 21,
  kIQ3_XS = 22,
  kIQ3_XXS = 23,
  kIQ1_S = 24,
  kIQ4_NL = 25,
  kIQ3_S = 26,
  kIQ3_M = 27,
  kIQ2_S = 28,
  kIQ2_M = 29,
  kIQ4_XS = 30,
  kIQ1_M = 31,
  kBF16 = 32,
  kTQ1_0 = 36,
  kTQ2_0 = 37,
  kMXFP4_MOE = 38,
  kQ1_0 = 40,
  kQ2_0 = 41,
};

struct FileTypeInfo {
  std::string_view name;  // "Q4_K_M"; an alias has a row of its own, before what it stands for
  FileType type;
  GgmlType tensor_type;  // of the tensors that no rule gives another
};

std::span<const FileTypeInfo> file_types();
/// By name, case-insensitive, or by number in decimal digits; nullptr when there is none. A number
/// that an alias shares gives the alias, as llama-quantize does.
const FileTypeInfo* find_file_type(std::string_view name_or_number);

/// "models/SmolLM2-135M.Q4_1.gguf" -> "SmolLM2-135M", "big-F16-00001-of-00003.gguf" -> "big": the
/// file's name without its ending, part and type.
std::string model_name(const std::string& path);

}  // namespace nibble
