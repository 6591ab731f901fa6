// Rotary position embedding: pair i of a head's elements turns by the angle position * base^(-2i/d)
// (Su et al., RoFormer, arXiv:2104.09864), with the scalings that llama.cpp applies from a GGUF's
// metadata: linear (angles divided by a factor), YaRN (arXiv:2309.00071: high frequencies kept, low
// ones divided, a ramp between; cosine and sine multiplied by a magnitude), and per-frequency
// divisors (rope_freqs.weight, which is how Llama 3's scaling is stored). Source of the constants:
// llama.cpp ggml_rope_ext and llama-context.cpp. LongRoPE (arXiv:2402.13753) has two such sets of
// divisors, one for short and one for long documents, and a magnitude.
#pragma once

#include <cstdint>
#include <vector>

#include "io/gguf.h"
#include "quant/fake/torch.h"

namespace nibble {

/// Which elements of a head are pair i.
enum class RopePairs {
  kNeighbours,  // 2i and 2i + 1: llama.cpp's "norm"
  kHalves,      // i and i + d/2: its "neox"
};

struct RopeOptions {
  int64_t dimensions = 0;  // d, of each head; even
  RopePairs pairs = RopePairs::kNeighbours;
  double base = 10000.0;
  double factor = 1.0;  // angles are divided by it (linear and YaRN)
  bool yarn = false;
  int64_t original_context = 0;   // YaRN: tokens the model was trained on first
  double attention_factor = 1.0;  // multiplies cosine and sine
  // YaRN: rotations within the original context where the ramp starts and ends.
  double beta_fast = 32, beta_slow = 1;
  std::vector<float> divisors;  // of each pair's angle: d/2, or empty
};

/// Reads <architecture>.rope.* as llama.cpp does; `dimensions` when the file does not say. Divisors
/// are left empty. Throws for a scaling type that nibble does not have.
RopeOptions read_rope_options(const GgufMetadata& metadata, const std::string& architecture,
                              int64_t dimensions);

/// Angle, in radians, by which pair `pair` turns per position.
double rope_frequency(const RopeOptions& options, int64_t pair);
/// What cosine and sine are multiplied by.
double rope_magnitude(const RopeOptions& options);

/// Cosine and sine of every position, made on demand.
class Rope {
 public:
  explicit Rope(RopeOptions options) : options_(std::move(options)) {}
  const RopeOptions& options() const { return options_; }

  /// [N, 1, d/2] complex64 = magnitude * exp(i * angle), for positions [N] int64 below `limit`.
  torch::Tensor rotation(const torch::Tensor& positions, int64_t limit);

 private:
  RopeOptions options_;
  torch::Tensor table_;  // [positions so far, d/2] complex64
};

/// x: [N, H, head size] float32; its first d elements are turned by `rotation` of Rope::rotation.
/// Differentiable.
torch::Tensor rotate(const torch::Tensor& x, const torch::Tensor& rotation,
                     RopePairs pairs = RopePairs::kNeighbours);

}  // namespace nibble
