// The trainable state of one quantized tensor: float32 master weights and scales, from which materialize() makes the
// W^ that the forward pass uses, bit-equal to what the exported blocks decode to.
#pragma once

#include <string>
#include <vector>

#include "quant/fake/torch.h"

#include "quant/format/registry.h"

namespace nibble {

enum class ScaleMode {
  kDynamic,  // closed form from the weights, every step (encode with kRtn), straight-through gradient
  kLearned,  // parameters, trained with LSQ gradients
  kFrozen,   // as learned, never updated
};

class FakeQuantizer {
 public:
  /// weights: [rows, row length] float32, the masters (kept, not copied). Scales start where `encode` with `initial`
  /// puts them; importance: one row of weights or undefined.
  FakeQuantizer(std::string name, const Format& format, ScaleMode mode, torch::Tensor weights,
                const torch::Tensor& importance, EncodeMethod initial);

  const std::string& name() const { return name_; }
  const Format& format() const { return *format_; }
  ScaleMode mode() const { return mode_; }
  /// Masters W, float32 [rows, row length].
  torch::Tensor& weights() { return weights_; }
  /// Scales as ratios to their initial values, float32 [rows, blocks per row * num_scales]: what the optimizer sees, so
  /// that its learning rate is relative. Undefined when the mode is dynamic or the format has no scales.
  torch::Tensor& scale_ratios() { return scale_ratios_; }
  torch::Tensor& initial_scales() { return initial_scales_; }

  /// Writes W^ into `out` ([rows, row length] float32).
  void materialize(torch::Tensor& out) const;
  /// Maps dL/dW^ to the masters' gradient (in place of grad_out, which is returned as it) and the ratios' gradient.
  struct Gradients {
    torch::Tensor weights, scale_ratios;
  };
  Gradients backward(torch::Tensor grad_out) const;
  /// The blocks that decode to exactly W^: what the exporter writes.
  std::vector<std::byte> blocks() const;

 private:
  torch::Tensor scales() const;  // ratios * initial
  std::string name_;
  const Format* format_;
  ScaleMode mode_;
  torch::Tensor weights_, scale_ratios_, initial_scales_;
};

}  // namespace nibble
