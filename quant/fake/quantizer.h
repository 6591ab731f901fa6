// The trainable state of one quantized tensor: float32 master weights and scales, from which
// materialize() makes the W^ that the forward pass uses, bit-equal to what the exported blocks
// decode to.
//
// Scales train as ratios to their initial values: scale = initial * max(ratio, 0), so that one
// learning rate is relative for all of them and signs are fixed at the start. Estimator:
// straight-through for weights, LSQ for scales (Esser et al. 2020, "Learned Step Size
// Quantization"), as the format's row functions define them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "quant/fake/torch.h"
#include "quant/format/registry.h"

namespace nibble {

enum class ScaleMode {
  kDynamic,  // closed form from the weights, every step (encode with kRtn), straight-through
             // gradient
  kLearned,  // parameters, trained with LSQ gradients
  kFrozen,   // as learned, never updated
};

/// "dynamic", "learned", "frozen".
std::string_view scale_mode_name(ScaleMode mode);
/// Throws Error (usage) for another name, with the nearest one.
ScaleMode parse_scale_mode(std::string_view name);

class FakeQuantizer {
 public:
  /// weights: [rows, row length] float32 on the CPU, contiguous, the masters (kept, not copied).
  /// Scales start where `encode` with `initial` puts them; importance: one row of weights or
  /// undefined. Throws Error naming tensor and row for weights that the format cannot hold.
  FakeQuantizer(std::string name, const Format& format, ScaleMode mode, torch::Tensor weights,
                const torch::Tensor& importance, EncodeMethod initial);
  /// Restores saved state. scale_ratios and initial_scales: as the accessors below give them.
  FakeQuantizer(std::string name, const Format& format, ScaleMode mode, torch::Tensor weights,
                torch::Tensor scale_ratios, torch::Tensor initial_scales);

  const std::string& name() const { return name_; }
  const Format& format() const { return *format_; }
  ScaleMode mode() const { return mode_; }
  /// Masters W, float32 [rows, row length].
  torch::Tensor& weights() { return weights_; }
  const torch::Tensor& weights() const { return weights_; }
  /// Scales as ratios to their initial values, float32 [rows, blocks per row * num_scales]: what
  /// the optimizer sees, so that its learning rate is relative. Undefined when the mode is dynamic
  /// or the format has no scales.
  torch::Tensor& scale_ratios() { return scale_ratios_; }
  const torch::Tensor& scale_ratios() const { return scale_ratios_; }
  torch::Tensor& initial_scales() { return initial_scales_; }
  const torch::Tensor& initial_scales() const { return initial_scales_; }

  /// Writes W^ into `out` ([rows, row length] float32, contiguous).
  void materialize(torch::Tensor& out) const;
  struct Gradients {
    torch::Tensor weights, scale_ratios;  // scale_ratios: undefined unless the mode is learned
    double squared_norm = 0;              // of both together
  };
  /// Maps dL/dW^ to the masters' gradient (in place of grad_out, which is returned as it) and the
  /// ratios' gradient, written into `grad_ratios` when that is defined (so that its memory is used
  /// again), else into a new tensor.
  Gradients backward(torch::Tensor grad_out, torch::Tensor grad_ratios = {}) const;
  /// The blocks that decode to exactly W^: what the exporter writes.
  std::vector<std::byte> blocks() const;

 private:
  bool has_scales() const { return scale_ratios_.defined(); }
  int64_t num_blocks() const { return weights_.numel() / format_->block_size; }
  /// The scales of blocks [begin, end), num_scales each, into `out`.
  void scales_of_blocks(int64_t begin, int64_t end, float* out) const;
  void check_shapes() const;

  std::string name_;
  const Format* format_;
  ScaleMode mode_;
  torch::Tensor weights_, scale_ratios_, initial_scales_;
};

/// 64 bits over a float32 tensor's bytes, the same for any number of threads: two tensors of equal
/// bits have equal hashes. Not cryptographic.
uint64_t content_hash(const torch::Tensor& values);
/// Sum of squares, in float64 over pieces of fixed size, the same for any number of threads.
double squared_norm(const torch::Tensor& values);

}  // namespace nibble
