#include "training/hessians.h"

#include "base/error.h"
#include "base/progress.h"
#include "quant/fake/gptq.h"

namespace nibble {
namespace {

/// Matrices that one input enters.
struct Matmul {
  int64_t width = 0, expert = kNoExpert;
  std::vector<Weight*> weights;
};

/// Calls `see(index, x, weights, expert)` for each matmul of a forward pass, index counting from 0.
template <class See>
void observe(Model& model, const Batch& batch, const See& see) {
  size_t index = 0;
  const MatmulObservation observation(
      model, [&](const torch::Tensor& x, const std::vector<const Weight*>& weights,
                 int64_t expert) { see(index++, x, weights, expert); });
  model.hidden(batch);
}

std::vector<Matmul> matmuls_of(Model& model, const Batch& batch) {
  std::vector<Matmul> found;
  observe(model, batch, [&](size_t, const torch::Tensor& x, const auto& weights, int64_t expert) {
    Matmul& matmul = found.emplace_back(Matmul{x.size(1), expert, {}});
    for (const Weight* weight : weights) matmul.weights.push_back(model.find_weight(weight->name));
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

}  // namespace

void visit_hessians(Model& model, const std::vector<Batch>& batches, int64_t max_bytes,
                    const std::string& title, const HessianVisitor& visit) {
  const torch::NoGradGuard no_grad;
  check(!batches.empty(), title, " needs text");
  check(model.device().is_cpu(), title, " runs on the CPU");
  const std::vector<Matmul> matmuls = matmuls_of(model, batches.front());
  Progress progress(title, static_cast<int64_t>(matmuls.size()), "matmuls");
  for (size_t begin = 0; begin < matmuls.size();) {
    const size_t end = end_of_pass(matmuls, begin, max_bytes);
    std::vector<Hessian> hessians;
    for (size_t i = begin; i < end; ++i) hessians.emplace_back(matmuls[i].width);
    for (const Batch& batch : batches)
      observe(model, batch, [&](size_t index, const torch::Tensor& x, const auto&, int64_t) {
        if (index >= begin && index < end) hessians[index - begin].add(x);
      });
    for (const Hessian& hessian : hessians) {
      visit(matmuls[begin].weights, matmuls[begin].expert, hessian.sum());
      progress.update(static_cast<int64_t>(++begin));
    }
  }
}

}  // namespace nibble
