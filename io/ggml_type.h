// The tensor types a GGUF file can name: number, name, weights per block and bytes per block (facts
// of the format; source: ggml/include/ggml.h, ggml/src/ggml-common.h). Knowing a type's size does
// not mean that nibble can decode it: quant/format/registry.h says which it can.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace nibble {

enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ8_1 = 9,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kQ8_K = 15,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
  kI64 = 27,
  kF64 = 28,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kMXFP4 = 39,
  kNVFP4 = 40,
  kQ1_0 = 41,
  kQ2_0 = 42,
};

struct GgmlTypeInfo {
  GgmlType type;
  std::string_view name;  // "Q4_0", as llama-quantize spells it
  int64_t block_size;     // weights per block
  int64_t block_bytes;
};

/// nullptr for a number that no known type has.
const GgmlTypeInfo* find_ggml_type(uint32_t number);
/// By name, case-insensitive ("q4_0"); nullptr when unknown.
const GgmlTypeInfo* find_ggml_type(std::string_view name);
/// For a type that is known to exist.
const GgmlTypeInfo& ggml_type_info(GgmlType type);
inline std::string_view type_name(GgmlType type) { return ggml_type_info(type).name; }
/// Bytes of a row of `length` weights, which block_size must divide.
int64_t row_bytes(GgmlType type, int64_t length);

}  // namespace nibble
