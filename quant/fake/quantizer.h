// The trainable state of one quantized tensor: float32 master weights and scales, from which
// materialize() makes the W^ that the forward pass uses, bit-equal to what the exported blocks
// decode to. Or stored blocks, whose codes stay as they are, and their scales: no masters then.
//
// Scales train as ratios to their initial values: scale = initial * max(ratio, 0), so that one
// learning rate is relative for all of them and signs are fixed at the start. All of it lies on one
// device, where materialize() and backward() work; a GPU's kernels give the CPU's bits. Gradients:
// as the format's row functions define them for the estimator (quant/format/estimator.h).
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
  kLearned,  // parameters, trained with the estimator's gradients
  kFrozen,   // as learned, never updated
};

/// "dynamic", "learned", "frozen".
std::string_view scale_mode_name(ScaleMode mode);
/// Throws Error (usage) for another name, with the nearest one.
ScaleMode parse_scale_mode(std::string_view name);

class FakeQuantizer {
 public:
  /// weights: [rows, row length] or [experts, rows, row length] float32, contiguous, the masters
  /// (kept, not copied).
  /// Scales start where `encode` with `initial` puts them, on the weights' device; importance: one
  /// row of weights on the CPU, or undefined. Throws Error naming tensor and row for weights that
  /// the format cannot hold, and (usage) for a mode that the format's scales cannot have.
  FakeQuantizer(std::string name, const Format& format, ScaleMode mode, torch::Tensor weights,
                const torch::Tensor& importance, EncodeMethod initial);
  /// Restores saved state. scale_ratios and initial_scales: as the accessors below give them.
  FakeQuantizer(std::string name, const Format& format, ScaleMode mode, torch::Tensor weights,
                torch::Tensor scale_ratios, torch::Tensor initial_scales);
  /// Stored blocks, kept and not copied: uint8 on the CPU, of the weights' shape, but for the last
  /// size, a row's bytes. Their scales start as they are and train if `learns`, where the format's
  /// can; else there is nothing but the blocks. A format whose scales are bytes, or that has none,
  /// may be one that is only decoded. Throws Error naming the tensor for a row that is no whole
  /// number of blocks and for scales that are not finite.
  FakeQuantizer(std::string name, const Format& format, torch::Tensor blocks, bool learns);

  const std::string& name() const { return name_; }
  const Format& format() const { return *format_; }
  ScaleMode mode() const { return mode_; }
  bool is_stored() const { return stored_.defined(); }
  /// As the third constructor takes them; undefined where there are masters.
  const torch::Tensor& stored_blocks() const { return stored_; }
  /// Takes the codes and initial scales of other blocks of the same shape.
  void copy_blocks(const torch::Tensor& blocks);
  /// Of W^.
  std::vector<int64_t> sizes() const;
  /// Masters W, float32; undefined where blocks are stored.
  torch::Tensor& weights() { return weights_; }
  const torch::Tensor& weights() const { return weights_; }
  /// Scales as ratios to their initial values, float32 [rows, blocks per row * num_scales], of all
  /// experts' rows: what the optimizer sees, so that its learning rate is relative. Undefined when
  /// the mode is dynamic or the format has no scales.
  torch::Tensor& scale_ratios() { return scale_ratios_; }
  const torch::Tensor& scale_ratios() const { return scale_ratios_; }
  torch::Tensor& initial_scales() { return initial_scales_; }
  const torch::Tensor& initial_scales() const { return initial_scales_; }

  /// Of scales that are learned; kRelative where nothing else is set.
  void set_estimator(Estimator estimator) { estimator_ = estimator; }

  /// Writes W^ into `out` (float32 of sizes(), contiguous, on the weights' device). Where the
  /// scales have moved since the last backward() and the estimator is relative, the masters follow
  /// them first.
  void materialize(torch::Tensor& out);
  /// Of stored blocks, rows [first, first + out.size(0)) of all: into `out` ([n, row length]
  /// float32, contiguous, on the CPU).
  void materialize_rows(int64_t first, torch::Tensor& out) const;
  struct Gradients {
    torch::Tensor weights, scale_ratios;  // scale_ratios: undefined unless the mode is learned
    /// Of both together, where it costs no pass of its own: on the CPU. 0 on a GPU.
    double squared_norm = 0;
  };
  /// Maps dL/dW^ to the masters' gradient (in place of grad_out, which is returned as it) and the
  /// ratios' gradient, written into `grad_ratios` when that is defined (so that its memory is used
  /// again), else into a new tensor.
  Gradients backward(torch::Tensor grad_out, torch::Tensor grad_ratios = {});
  /// The same for stored blocks, whose scales train: adds to grad_ratios, which is made where it is
  /// undefined. Linear in grad_out (float32 of sizes()), so gradients may come in parts.
  void add_scale_gradients(const torch::Tensor& grad_out, torch::Tensor& grad_ratios) const;
  /// The blocks that decode to exactly W^: what the exporter writes.
  std::vector<std::byte> blocks() const;
  /// How far neighbouring levels are apart as scales are now: mean of a group, root mean square
  /// over groups. 0 for a format without levels.
  double level_distance() const;

 private:
  bool has_scales() const { return scale_ratios_.defined(); }
  /// Whether scales follow from the weights in each step.
  bool is_dynamic() const { return mode_ == ScaleMode::kDynamic && format_->num_scales > 0; }
  int64_t num_blocks() const {
    return is_stored() ? stored_.numel() / format_->block_bytes
                       : weights_.numel() / format_->block_size;
  }
  /// The scales of blocks [begin, end) for these ratios, num_scales each, into `out`.
  void scales_of_blocks(const torch::Tensor& ratios, int64_t begin, int64_t end, float* out) const;
  /// Stored blocks [begin, end) with the scales as they are now, into `out`.
  void trained_blocks(int64_t begin, int64_t end, std::byte* out) const;
  void read_initial_scales();
  void check_mode() const;
  void check_shapes() const;
  int64_t row_length() const { return weights_.size(-1); }
  int64_t num_rows() const { return weights_.numel() / row_length(); }
  void check_like_weights(const torch::Tensor& tensor, const char* what) const;
  void materialize_on_cuda(torch::Tensor& out);
  void backward_on_cuda(torch::Tensor& grad_out, torch::Tensor& grad_ratios) const;

  std::string name_;
  const Format* format_;
  ScaleMode mode_;
  Estimator estimator_ = Estimator::kRelative;
  /// The ratios of the last backward(), until masters have followed what came after; else
  /// undefined.
  torch::Tensor followed_ratios_;
  torch::Tensor weights_, stored_, scale_ratios_, initial_scales_;
};

/// base/checksum.h's of a float32 tensor on any device, computed on the CPU.
uint64_t content_hash(const torch::Tensor& values);
/// Sum of squares of a tensor on the CPU, in float64 over pieces of fixed size, the same for any
/// number of threads.
double squared_norm(const torch::Tensor& values);
/// The same of all tensors together, on any device: a few launches and one transfer. Undefined
/// tensors count as empty.
double squared_norm_of_all(const std::vector<torch::Tensor>& tensors);

}  // namespace nibble
