// The types in which Hugging Face checkpoints hold weights, as GGUF's.
#pragma once

#include "base/error.h"
#include "io/ggml_type.h"
#include "io/safetensors.h"

namespace nibble {

inline GgmlType hf_source_type(const SafetensorsEntry& entry) {
  if (entry.dtype == "F32") return GgmlType::kF32;
  if (entry.dtype == "F16") return GgmlType::kF16;
  if (entry.dtype == "BF16") return GgmlType::kBF16;
  fail("is stored as ", entry.dtype, "; nibble converts F32, F16 and BF16");
}

}  // namespace nibble
