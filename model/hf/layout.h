// What the GGUF file of a Hugging Face model will hold, from its config.json alone: no weights are
// needed to plan for it.
#pragma once

#include <string>

#include "io/gguf.h"

namespace nibble {

/// path: a folder with a config.json, or that file. Matrices are F16, also those that the
/// checkpoint has as codes, vectors and routers F32; of the metadata the keys of the architecture,
/// none of the tokenizer. Throws what read_hf_config() throws, with the path.
GgufFile hf_layout(const std::string& path);

}  // namespace nibble
