#include "training/gptq_start.h"

#include "base/error.h"
#include "base/progress.h"
#include "quant/fake/gptq.h"
#include "quant/fake/quantizer.h"

namespace nibble {
namespace {

/// Matrices that one input enters.
struct Matmul {
  int64_t width = 0;
  std::vector<std::string> weights;
};

/// Calls `see(index, x)` for each matmul of a forward pass, index counting from 0.
template <class See>
void observe(Model& model, const Batch& batch, const See& see) {
  size_t index = 0;
  const MatmulObservation observation(
      model, [&](const torch::Tensor& x, const std::vector<const Weight*>& weights) {
        see(index++, x, weights);
      });
  model.hidden(batch);
}

std::vector<Matmul> matmuls_of(Model& model, const Batch& batch) {
  std::vector<Matmul> found;
  observe(model, batch, [&](size_t, const torch::Tensor& x, const auto& weights) {
    Matmul& matmul = found.emplace_back(Matmul{x.size(1), {}});
    for (const Weight* weight : weights) matmul.weights.push_back(weight->name);
  });
  return found;
}

/// Matmuls [begin, end), end as far as the Hessians have room, at least one.
size_t end_of_pass(const std::vector<Matmul>& matmuls, size_t begin, int64_t max_bytes) {
  int64_t bytes = 0;
  size_t end = begin;
  while (end < matmuls.size()) {
    bytes += matmuls[end].width * matmuls[end].width * static_cast<int64_t>(sizeof(float));
    if (end > begin && bytes > max_bytes) break;
    ++end;
  }
  return end;
}

/// Rounds one matrix, in the model too.
void start_weight(Weight& weight, GgmlType type, const torch::Tensor& hessian,
                  StartingPoints& points) {
  const Format& format = require_format(type);
  if (format.num_scales == 0) return;
  const torch::Tensor original = weight.value.detach().contiguous();
  // Scales by search, weighed with the Hessian's diagonal.
  FakeQuantizer searched(weight.name, format, ScaleMode::kFrozen, original,
                         hessian.diagonal().contiguous(), EncodeMethod::kSearch);
  with_frame(concat("tensor '", weight.name, "'"), [&] {
    GptqResult found = gptq(format, original, hessian, searched.initial_scales());
    weight.value.detach().copy_(found.rounded);
    points[weight.name] = {std::move(found.weights), searched.initial_scales()};
  });
}

}  // namespace

StartingPoints gptq_start(Model& model, const Plan& plan, const std::vector<Batch>& batches,
                          int64_t max_hessian_bytes) {
  const torch::NoGradGuard no_grad;
  check(!batches.empty(), "GPTQ needs text");
  check(model.device().is_cpu(), "GPTQ runs on the CPU");
  const std::vector<Matmul> matmuls = matmuls_of(model, batches.front());
  StartingPoints points;
  Progress progress("GPTQ", static_cast<int64_t>(matmuls.size()), "matmuls");
  for (size_t begin = 0; begin < matmuls.size();) {
    const size_t end = end_of_pass(matmuls, begin, max_hessian_bytes);
    std::vector<Hessian> hessians;
    for (size_t i = begin; i < end; ++i) hessians.emplace_back(matmuls[i].width);
    for (const Batch& batch : batches)
      observe(model, batch, [&](size_t index, const torch::Tensor& x, const auto&) {
        if (index >= begin && index < end) hessians[index - begin].add(x);
      });
    for (const Hessian& hessian : hessians) {
      for (const std::string& name : matmuls[begin].weights) {
        const PlanEntry* entry = plan.find(name);
        check(entry, "the plan has no tensor '", name, "'");
        start_weight(*model.find_weight(name), entry->target, hessian.sum(), points);
      }
      progress.update(static_cast<int64_t>(++begin));
    }
  }
  return points;
}

}  // namespace nibble
