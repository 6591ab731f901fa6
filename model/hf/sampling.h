// generation_config.json as general.sampling.* keys (source: gguf-py gguf/metadata.py).
#pragma once

#include <string>

#include "io/gguf.h"

namespace nibble {

/// Empty where the folder has no such file.
GgufMetadata sampling_metadata(const std::string& folder);

}  // namespace nibble
