// The types in which Hugging Face checkpoints hold weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "io/ggml_type.h"
#include "io/safetensors.h"

namespace nibble {

/// GGUF's type for F32, F16 and BF16; of 8-bit floats (E4M3 without infinities, E5M2: Micikevicius
/// et al., arXiv:2209.05433) BF16, which holds each exactly. Throws for any other.
GgmlType hf_source_type(const SafetensorsEntry& entry);

/// Bytes of so many weights.
int64_t hf_weight_bytes(const SafetensorsEntry& entry, int64_t count);

/// bytes: of weights.size() weights of the entry, as stored.
void hf_decode(const SafetensorsEntry& entry, std::span<const std::byte> bytes,
               std::span<float> weights);

}  // namespace nibble
