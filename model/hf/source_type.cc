#include "model/hf/source_type.h"

#include <array>
#include <cmath>
#include <limits>
#include <string_view>

#include "base/error.h"
#include "base/float16.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

using Float8Values = std::array<float, 256>;

float e4m3(uint32_t bits) {
  const auto exponent = static_cast<int>(bits >> 3 & 15), mantissa = static_cast<int>(bits & 7);
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return bits & 128 ? -magnitude : magnitude;
}

/// A float16 without its lower byte.
float e5m2(uint32_t bits) { return float16_to_float(static_cast<uint16_t>(bits << 8)); }

const Float8Values* float8_values(std::string_view dtype) {
  const auto table = [](float (*value)(uint32_t)) {
    Float8Values values;
    for (uint32_t bits = 0; bits < values.size(); ++bits) values[bits] = value(bits);
    return values;
  };
  static const Float8Values kE4M3 = table(e4m3), kE5M2 = table(e5m2);
  return dtype == "F8_E4M3" ? &kE4M3 : dtype == "F8_E5M2" ? &kE5M2 : nullptr;
}

}  // namespace

GgmlType hf_source_type(const SafetensorsEntry& entry) {
  if (entry.dtype == "F32") return GgmlType::kF32;
  if (entry.dtype == "F16") return GgmlType::kF16;
  if (entry.dtype == "BF16" || float8_values(entry.dtype)) return GgmlType::kBF16;
  fail("is stored as ", entry.dtype, "; nibble converts F32, F16, BF16, F8_E4M3 and F8_E5M2");
}

int64_t hf_weight_bytes(const SafetensorsEntry& entry, int64_t count) {
  return float8_values(entry.dtype) ? count : row_bytes(hf_source_type(entry), count);
}

void hf_decode(const SafetensorsEntry& entry, std::span<const std::byte> bytes,
               std::span<float> weights) {
  const Float8Values* values = float8_values(entry.dtype);
  if (!values) return decode_tensor(hf_source_type(entry), bytes, weights);
  check(bytes.size() == weights.size(), bytes.size(), " bytes for ", weights.size(), " weights");
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = (*values)[static_cast<size_t>(bytes[i])];
}

}  // namespace nibble
