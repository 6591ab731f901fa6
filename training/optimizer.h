// AdamW (Loshchilov and Hutter 2019) over named float32 parameters in groups, by ATen's fused
// kernel.
//
// With options.relative lr is the rate times the optimizer's coarseness; of a matrix or vector,
// times its root mean square when it was added, too. Decay keeps being a share of the weight for
// each unit of the plain rate.
//
//   m = b1 m + (1 - b1) g      v = b2 v + (1 - b2) g^2
//   w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "quant/fake/torch.h"
#include "training/trainer.h"

namespace nibble {

/// Matrices decay; scales have their own rate and, like norms and biases, no decay.
enum class ParameterGroup { kMatrix, kScales, kVector };

class AdamW {
 public:
  /// coarseness: what relative rates are multiplied with.
  explicit AdamW(const OptimizerOptions& options, double coarseness = 1)
      : options_(options), coarseness_(coarseness) {}

  /// Adds a parameter; moments start at zero, on its device, which is that of all. Its place in
  /// gradients is the order of adding.
  void add(const std::string& name, ParameterGroup group, torch::Tensor parameter);

  /// One update of every parameter whose gradient is defined. rate_factor: the schedule's share of
  /// each group's learning rate. norm: of all gradients; where it exceeds clip_norm, gradients are
  /// scaled down to it (in place).
  void step(const std::vector<torch::Tensor>& gradients, double rate_factor, double norm);

  int64_t num_parameters() const { return static_cast<int64_t>(parameters_.size()); }
  /// By "NAME:moment1", "NAME:moment2" and "NAME:steps", with relative rates "NAME:unit" too: the
  /// state itself, not copies.
  std::map<std::string, torch::Tensor> moments() const;
  /// Continues from saved moments after `steps` updates, where the state does not say how many a
  /// parameter had: it has none while its gradient is undefined. Throws where one is missing or of
  /// another shape.
  void restore(const std::map<std::string, torch::Tensor>& moments, int64_t steps);

 private:
  struct Parameter {
    std::string name;
    ParameterGroup group;
    torch::Tensor value, moment1, moment2;
    torch::Tensor steps;  // [] float32 on the value's device, as the fused kernel wants it
    torch::Tensor unit;   // [] float32 on the CPU, what a rate of 1 means; undefined: 1
  };
  /// Parameters that one call of the fused kernel can update: of one group and unit.
  struct Together {
    std::vector<torch::Tensor> values, grads, moments1, moments2, steps;
    void add(const Parameter& parameter, const torch::Tensor& gradient);
  };
  void step_group(ParameterGroup group, const std::vector<torch::Tensor>& gradients,
                  double rate_factor, const torch::Tensor& divisor);
  void step_together(Together& together, ParameterGroup group, double rate_factor, double unit,
                     const torch::Tensor& divisor);

  OptimizerOptions options_;
  double coarseness_;
  std::vector<Parameter> parameters_;
};

}  // namespace nibble
