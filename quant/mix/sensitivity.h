// How far a model moves when one of its tensors alone is quantized, for each type: what
// `nibble sensitivity` measures and `nibble quantize --target-bpw` chooses types by.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/ggml_type.h"

namespace nibble {

struct TensorSensitivity {
  std::string tensor;
  std::vector<int64_t> shape;  // ggml order
  /// Mean KLD from the unquantized model, nats per token, with this tensor in that type.
  std::vector<std::pair<GgmlType, double>> kld;

  /// nullptr where the type was not measured.
  const double* find(GgmlType type) const;
};

struct Sensitivity {
  std::string model, text;  // paths, for people
  /// Of the model's weights, the tokens and how they were encoded: equal for equal measurements.
  std::string fingerprint;
  std::vector<TensorSensitivity> tensors;

  const TensorSensitivity* find(std::string_view tensor) const;
  std::string to_json() const;
  /// Throws Error, naming the tensor and the field, for text that is none.
  static Sensitivity from_json(const std::string& text);
};

}  // namespace nibble
