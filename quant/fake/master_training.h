// How the masters of a quantized tensor train: what the optimizer moves, its gradients from dL/dW,
// and what becomes of the masters then. One class and one row of the table in master_training.cc
// for each setting of `weights`:
//
//   full      every master is a parameter
//   lora      W = W0 + B A, with factors of low rank as parameters (Hu et al. 2021,
//             arXiv:2106.09685): there are gradients and moments of the factors alone. The sum is
//             on the grid, so an exported file has no adapter.
//   rounding  as full, but no master goes further from where it starts than half the distance of
//             two levels, so each weight is rounded up or down (AutoRound, Cheng et al. 2023,
//             arXiv:2309.05516, whose offset V is (W - W0) / d here)
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "quant/fake/quantizer.h"
#include "quant/fake/torch.h"

namespace nibble {

class MasterTraining {
 public:
  /// "": the masters themselves; else what follows the tensor's name in a checkpoint.
  struct Part {
    std::string suffix;
    torch::Tensor value;  // float32
  };

  virtual ~MasterTraining() = default;
  /// What the optimizer moves.
  virtual std::vector<Part> parameters() const = 0;
  /// Of the parameters, in their order; linear in of_masters, which has the masters' sizes
  /// and may be one of them.
  virtual std::vector<torch::Tensor> gradients(const torch::Tensor& of_masters) const = 0;
  /// Whether gradients() are so much smaller than dL/dW that each part of a batch's dL/dW is mapped
  /// when it is there, and not kept.
  virtual bool maps_at_once() const { return false; }
  /// After a step: brings the masters to what the parameters say.
  virtual void apply(torch::Tensor& masters) = 0;
  /// What a checkpoint keeps beside the masters.
  virtual std::vector<Part> state() const { return {}; }
  /// After state() was written into.
  virtual void restored() {}
};

/// Suffixes that state() may have, for whoever reads a checkpoint.
const std::vector<std::string>& master_state_suffixes();

/// The names of the table.
std::vector<std::string> master_training_names();

/// For the masters of `quantizer`, which it keeps a reference to; nullptr where nothing of them can
/// train so: rounding, in a type without levels. name: of the table; rank: of the
/// factors. Throws Error (usage) for another name, and naming the tensor for a rank above its
/// smaller size. The start of the factors depends on the tensor's name alone.
std::unique_ptr<MasterTraining> make_master_training(std::string_view name,
                                                     const FakeQuantizer& quantizer, int64_t rank);

}  // namespace nibble
