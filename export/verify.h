// Reads a GGUF file back: every tensor is decoded, must be finite, must have the hash that the
// exporter stored (nibble.tensor_hashes, where the file has it), must be, bit for bit, the W^ of a
// checkpoint where one is given, and what a second decoder (a GPU's) makes of it. Without LibTorch.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "io/gguf.h"

namespace nibble {

/// How a comparison of one tensor ended. kAbsent: there was nothing to compare it with.
enum class VerifyOutcome { kEqual, kDifferent, kAbsent };

struct TensorVerification {
  std::string name;
  GgmlType type = GgmlType::kF32;
  int64_t num_weights = 0;
  bool finite = true;
  VerifyOutcome hash = VerifyOutcome::kAbsent;        // against nibble.tensor_hashes
  VerifyOutcome checkpoint = VerifyOutcome::kAbsent;  // against the checkpoint's W^
  VerifyOutcome gpu = VerifyOutcome::kAbsent;         // against the second decoder
  std::string problem;                                // "" when there is none

  bool passed() const { return problem.empty(); }
};

struct Verification {
  std::vector<TensorVerification> tensors;  // in file order
  std::vector<std::string> missing;         // trained tensors that the file does not have
  int64_t weights = 0, weights_hashed = 0, weights_compared = 0, weights_on_gpu = 0;

  bool passed() const;
};

/// Decodes a tensor's bytes as decode_tensor() does, elsewhere.
using TensorDecoder =
    std::function<void(GgmlType type, std::span<const std::byte> bytes, std::span<float> out)>;

/// What a run trained: the W^ of each of its tensors (export.h makes it of a checkpoint).
struct TrainedWeights {
  std::vector<std::string> names;
  /// Of the tensor of that name, which is one of `names`.
  std::function<std::vector<float>(const std::string& name)> weights_of;
};

/// Holds one tensor's weights at a time. `against` may be nullptr; on_gpu: empty where there is no
/// GPU. Throws for a type that nibble cannot decode and for hashes that do not fit the file's
/// number of tensors; what is merely wrong is in the result.
Verification verify(const GgufFile& file, const TrainedWeights* against,
                    const TensorDecoder& on_gpu = {});

}  // namespace nibble
