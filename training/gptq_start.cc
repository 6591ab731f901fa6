#include "training/gptq_start.h"

#include <utility>

#include "base/error.h"
#include "quant/fake/gptq.h"

namespace nibble {
namespace {

/// Without a Hessian, as of an expert that no position reached, all inputs count alike.
GptqResult start_matrix(const Format& format, const torch::Tensor& original,
                        const torch::Tensor& hessian) {
  const torch::Tensor energy = hessian.diagonal().contiguous();
  if (energy.any().item<bool>())
    return gptq(format, original, hessian, chosen_scales(format, original, energy));
  const torch::Tensor scales = chosen_scales(format, original, torch::Tensor());
  return {original.clone(), scales, fake_quantized(format, original, scales)};
}

/// Rounds one matrix, in the model too.
void start_weight(Weight& weight, int64_t expert, GgmlType type, const torch::Tensor& hessian,
                  StartingPoints& points) {
  const Format& format = require_format(type);
  if (format.num_scales == 0) return;
  const torch::Tensor matrix = weight.matrix(expert);
  GptqResult found = start_matrix(format, matrix.contiguous(), hessian);
  matrix.copy_(found.rounded);
  StartingPoint& point = points[weight.name];
  if (expert == kNoExpert) {
    point = {std::move(found.weights), std::move(found.scales), {}};
    return;
  }
  const int64_t experts = weight.value.size(0);
  if (!point.weights.defined())
    point = {torch::empty_like(weight.value.detach()),
             torch::empty({experts * found.scales.size(0), found.scales.size(1)}),
             {}};
  point.weights.select(0, expert).copy_(found.weights);
  point.scales.narrow(0, expert * found.scales.size(0), found.scales.size(0)).copy_(found.scales);
}

}  // namespace

StartingPoints gptq_start(Model& model, const Plan& plan, const std::vector<Batch>& batches,
                          int64_t max_hessian_bytes) {
  StartingPoints points;
  visit_hessians(
      model, batches, max_hessian_bytes, "GPTQ",
      [&](const std::vector<Weight*>& weights, int64_t expert, const torch::Tensor& hessian) {
        for (Weight* weight : weights) {
          const PlanEntry* entry = plan.find(weight->name);
          check(entry, "the plan has no tensor '", weight->name, "'");
          with_frame(concat("tensor '", weight->name, "'"),
                     [&] { start_weight(*weight, expert, entry->target, hessian, points); });
        }
      });
  return points;
}

}  // namespace nibble
