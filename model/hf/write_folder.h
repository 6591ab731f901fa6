// A GGUF file as a Hugging Face folder: the inverse of convert.h, from the same table. Weights are
// what the file's blocks decode to, with the rows of q and k in Hugging Face's order; config.json,
// the tokenizer and all else is copied from a folder of the same model, with the bytes of a tower
// that sees. Tensors pass through in pieces: the folder may be larger than memory.
#pragma once

#include <cstdint>
#include <string>

#include "io/ggml_type.h"
#include "io/gguf.h"

namespace nibble {

struct HfWriting {
  std::string like;                         // folder of the same model
  GgmlType dtype = GgmlType::kF32;          // F32, which holds every decoded weight; F16 or BF16
  int64_t max_shard_bytes = 5'000'000'000;  // of a safetensors file, unless one tensor is larger
};

struct HfWritten {
  int64_t num_tensors = 0, num_files = 0, bytes = 0;  // of tensor data
};

/// Makes `out`, which must not exist or be empty, aside and renames it. Throws where the file and
/// the folder's config.json are not of the same model.
HfWritten write_hf_folder(const GgufFile& file, const std::string& out, const HfWriting& writing);

}  // namespace nibble
