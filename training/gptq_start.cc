#include "training/gptq_start.h"

#include <utility>

#include "base/error.h"
#include "quant/fake/gptq.h"

namespace nibble {
namespace {

/// Rounds one matrix, in the model too.
void start_weight(Weight& weight, GgmlType type, const torch::Tensor& hessian,
                  StartingPoints& points) {
  const Format& format = require_format(type);
  if (format.num_scales == 0) return;
  const torch::Tensor original = weight.value.detach().contiguous();
  const torch::Tensor scales = chosen_scales(format, original, hessian.diagonal().contiguous());
  GptqResult found = gptq(format, original, hessian, scales);
  weight.value.detach().copy_(found.rounded);
  points[weight.name] = {std::move(found.weights), std::move(found.scales), {}};
}

}  // namespace

StartingPoints gptq_start(Model& model, const Plan& plan, const std::vector<Batch>& batches,
                          int64_t max_hessian_bytes) {
  StartingPoints points;
  visit_hessians(model, batches, max_hessian_bytes, "GPTQ",
                 [&](const std::vector<Weight*>& weights, const torch::Tensor& hessian) {
                   for (Weight* weight : weights) {
                     const PlanEntry* entry = plan.find(weight->name);
                     check(entry, "the plan has no tensor '", weight->name, "'");
                     with_frame(concat("tensor '", weight->name, "'"),
                                [&] { start_weight(*weight, entry->target, hessian, points); });
                   }
                 });
  return points;
}

}  // namespace nibble
