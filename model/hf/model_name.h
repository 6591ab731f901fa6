// general.name and its parts, read out of a folder's name as llama.cpp's converter does it
// ("Qwen2.5-7B-Instruct": basename Qwen2.5, size label 7B, finetune Instruct). Source: gguf-py
// gguf/metadata.py, gguf/utility.py. The model card (README.md) is not read.
#pragma once

#include <cstdint>
#include <string>

#include "io/gguf.h"

namespace nibble {

/// The parts of a model's name; "" where it has none.
struct ModelName {
  std::string full, organization, basename, finetune, version, size_label;
};

/// Of "organization/name" or "name". num_parameters decides whether "128k" is a size or a context.
ModelName split_model_name(const std::string& id, int64_t num_parameters);

/// 134515008 -> "135M": two digits at least.
std::string size_label(int64_t num_parameters);

/// general.name ... general.size_label, in the converter's order. name_or_path: config.json's
/// _name_or_path, or ""; what it does not say, the folder's name does, and of the size `label`.
GgufMetadata model_name_metadata(const std::string& name_or_path, const std::string& folder,
                                 int64_t num_parameters, const std::string& label);

}  // namespace nibble
