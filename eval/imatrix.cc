#include "eval/imatrix.h"

#include <map>
#include <string>

#include "base/error.h"
#include "base/progress.h"
#include "eval/perplexity.h"

namespace nibble {
namespace {

/// Of one weight: squares, where the model lies, [1, in] float64 or [experts, in], and how many
/// there were.
struct Sum {
  torch::Tensor squares;
  std::vector<int64_t> counts;
};
using Sums = std::map<std::string, Sum>;

MatmulObserver adding_to(Sums& sums) {
  return
      [&sums](const torch::Tensor& x, const std::vector<const Weight*>& weights, int64_t expert) {
        const torch::Tensor squares = x.square().sum(0, /*keepdim=*/false, torch::kFloat64);
        for (const Weight* weight : weights) {
          Sum& sum = sums[weight->name];
          const int64_t matrices = expert == kNoExpert ? 1 : weight->value.size(0);
          const int64_t at = expert == kNoExpert ? 0 : expert;
          if (sum.counts.empty())
            sum = {torch::zeros({matrices, squares.size(0)}, squares.options()),
                   std::vector<int64_t>(matrices)};
          sum.squares.select(0, at).add_(squares);
          sum.counts[at] += x.size(0);
        }
      };
}

std::vector<float> floats_of(const torch::Tensor& sums) {
  const torch::Tensor values = sums.to(torch::kCPU, torch::kFloat32).contiguous();
  return {values.data_ptr<float>(), values.data_ptr<float>() + values.numel()};
}

void check_finite(const Sums& sums) {
  for (const auto& [name, sum] : sums)
    check(sum.squares.isfinite().all().item<bool>(), "tensor '", name,
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
  for (const auto& [name, sum] : sums) imatrix.entries[name] = {floats_of(sum.squares), sum.counts};
  return imatrix;
}

}  // namespace nibble
