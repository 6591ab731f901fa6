#include "eval/imatrix.h"

#include <map>
#include <string>

#include "base/error.h"
#include "base/progress.h"
#include "eval/perplexity.h"

namespace nibble {
namespace {

/// Sums of squares by weight, where the model lies: [in] float64.
using Sums = std::map<std::string, torch::Tensor>;

MatmulObserver adding_to(Sums& sums) {
  return [&sums](const torch::Tensor& x, const std::vector<const Weight*>& weights) {
    const torch::Tensor squares = x.square().sum(0, /*keepdim=*/false, torch::kFloat64);
    for (const Weight* weight : weights) {
      torch::Tensor& sum = sums[weight->name];
      sum = sum.defined() ? sum + squares : squares;
    }
  };
}

std::vector<float> floats_of(const torch::Tensor& sums) {
  const torch::Tensor values = sums.to(torch::kCPU, torch::kFloat32).contiguous();
  return {values.data_ptr<float>(), values.data_ptr<float>() + values.numel()};
}

void check_finite(const Sums& sums) {
  for (const auto& [name, sum] : sums)
    check(sum.isfinite().all().item<bool>(), "tensor '", name,
          "': the activations that enter it are not finite");
}

}  // namespace

Imatrix collect_imatrix(Model& model, const std::vector<std::vector<int32_t>>& chunks) {
  check(!chunks.empty(), "no chunks to read");
  Sums sums;
  const MatmulObservation observation(model, adding_to(sums));
  Progress progress("imatrix", std::ssize(chunks), "chunks");
  run_chunks(model, chunks, [&](int64_t first, const torch::Tensor& hidden) {
    check_finite(sums);
    progress.update(first + hidden.size(0));
  });
  Imatrix imatrix;
  imatrix.chunk_count = std::ssize(chunks);
  imatrix.chunk_size = std::ssize(chunks[0]);
  for (const auto& [name, sum] : sums)
    imatrix.entries[name] = {floats_of(sum), {imatrix.chunk_count * imatrix.chunk_size}};
  return imatrix;
}

}  // namespace nibble
