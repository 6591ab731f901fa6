// The model that trains: each of its weights on the grid that the plan gives it. A weight of a
// quantized type has its masters and scales in a FakeQuantizer and holds W^ in Weight::value; one
// of type F32 (norms, biases) is its own parameter. A tied output is one weight, so it has one
// state and its gradient is the sum of both uses. Each expert of a stack is a parameter of its own:
// one that no token reached is left as it is. How masters train is quant/fake/master_training.h's;
// but for `weights: full` only what is quantized trains. Where scales alone train (`weights:
// scales`), a FakeQuantizer stores blocks, everything else is frozen, W^ exists while a layer
// computes with it (model/made_weight.h), and its gradient is gone as soon as the backward pass has
// made it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/model.h"
#include "quant/fake/master_training.h"
#include "quant/fake/quantizer.h"
#include "quant/mix/plan.h"
#include "training/checkpoint.h"
#include "training/optimizer.h"
#include "training/starting_point.h"
#include "training/trainer.h"

namespace nibble {

class Student {
 public:
  /// Takes a model with its pretrained weights. plan: nullptr or options.type "none" trains it
  /// unquantized. Takes the weights and scales of `start`, chooses the initial scales of the others
  /// (which can take a while: a bar is shown) and materializes.
  Student(std::unique_ptr<Model> model, const Plan* plan, const QuantOptions& options,
          const StartingPoints& start = {});

  Model& model() { return *model_; }
  /// Whether there is anything that trains: not where all is frozen.
  bool trains() const;
  /// The distance between a weight's levels as a share of its size, both root mean squares: the
  /// mean over all weights whose masters train. 1 where nothing is quantized.
  double coarseness() const;
  /// Registers all parameters, in the order that gradients() uses.
  void add_parameters(AdamW& optimizer) const;
  /// After an optimizer step: masters are what their parameters say, and W^ what they make.
  void update();
  /// After the last micro-batch: turns dL/dW^ into the gradients of all parameters. Returns their
  /// norm.
  double backward();
  const std::vector<torch::Tensor>& gradients() const { return gradients_; }
  /// Experts' matrices that train, and of which the last backward() found no gradient: no token
  /// reached them.
  int64_t num_unreached() const { return num_unreached_; }
  /// Lets go of all gradients; the next micro-batch starts new ones.
  void clear_gradients();

  /// Name of the first weight ("blk.0.ffn_up.weight", "masters of ...", "scales of ...") or
  /// gradient
  /// ("gradient of ...") with a value that is not finite, or "".
  std::string first_bad_weight() const;
  std::string first_bad_gradient() const;
  /// Masters and scales, not copied, with the hash of each W^.
  std::vector<TrainedTensor> tensors() const;
  /// Takes masters and scales from a checkpoint of the same model and plan, and materializes.
  void restore(const std::vector<TrainedTensor>& tensors);

 private:
  struct Trainable {
    Weight* weight = nullptr;
    std::optional<FakeQuantizer> quantizer;
    std::unique_ptr<MasterTraining> masters;      // of a quantizer whose masters train
    std::vector<torch::Tensor> mapped_gradients;  // a step's sums, where the masters map at once
    torch::Tensor ratio_gradients;  // reused from step to step; of stored codes, a step's sum
    bool frozen = false;            // QuantOptions::frozen names it

    /// The weight itself, or its masters.
    bool trains_weights() const {
      return weight->value.requires_grad() && !(quantizer && quantizer->is_stored());
    }
    bool learns_scales() const;
    bool maps_at_once() const { return masters && masters->maps_at_once(); }
    /// What the optimizer moves of the weight, besides scales.
    std::vector<MasterTraining::Part> parameters() const;
    /// What the optimizer sees one by one: a stack's experts.
    int64_t num_parts() const { return weight->is_stack() ? weight->value.size(0) : 1; }
    /// One of them, of masters, factors, scales or their gradients.
    torch::Tensor part(const torch::Tensor& whole, int64_t index) const;
  };
  void set_estimator(const Estimator& estimator);
  /// Of all stored blocks that have such; the gradients of their W^ go there.
  void train_stored_scales();
  /// Of all quantizers that have masters which train.
  void train_masters(const QuantOptions& options);
  /// W^ of every quantized weight, from its masters and scales.
  void materialize();
  /// The parts of a gradient, those of a stack undefined where they are zero. Returns how many of
  /// a stack's are undefined.
  int64_t add_gradients(const Trainable& trainable, const torch::Tensor& whole);
  /// Of each of the parameters that stand for one weight: how many experts have none at all.
  int64_t add_gradients(const Trainable& trainable, const std::vector<torch::Tensor>& parameters);

  std::unique_ptr<Model> model_;
  std::vector<Trainable> trainables_;
  std::vector<torch::Tensor> gradients_;
  int64_t num_unreached_ = 0;
};

}  // namespace nibble
