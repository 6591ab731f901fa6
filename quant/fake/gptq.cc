#include "quant/fake/gptq.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "quant/fake/scale_refit.h"

namespace nibble {
namespace {

// Columns whose mutual corrections are made at once; those to the columns after them wait until the
// whole batch is rounded, and are then one matrix product.
constexpr int64_t kBatch = 128;
// Rows that a thread rounds at a time.
constexpr int64_t kRows = 64;

/// Cholesky factor U (upper) of the inverse of the damped Hessian: row i holds, right of the
/// diagonal, what rounding column i asks of the columns after it.
torch::Tensor inverse_factor(torch::Tensor hessian, double damping) {
  torch::Tensor diagonal = hessian.diagonal();
  diagonal.masked_fill_(diagonal.eq(0), 1);
  const double mean = diagonal.mean().item<double>();
  check(std::isfinite(mean), "the Hessian is not finite");
  // Ten times more damping where rounding errors left it indefinite.
  for (int attempt = 0; attempt < 5; ++attempt, damping *= 10) {
    const torch::Tensor damped = hessian.clone();
    damped.diagonal().add_(damping * mean);
    const auto [factor, failed] = at::linalg_cholesky_ex(damped);
    if (failed.item<int64_t>() != 0) continue;
    const auto [upper, indefinite] =
        at::linalg_cholesky_ex(at::cholesky_inverse(factor), /*upper=*/true);
    if (indefinite.item<int64_t>() == 0) return upper.contiguous();
  }
  fail("the Hessian is not positive definite");
}

/// The values that the format can give one column of all rows. A weight's code depends on nothing
/// but itself and its block's scales, so the block around it is left 0.
class Column {
 public:
  Column(const Format& format, const torch::Tensor& scales, int64_t rows)
      : format_(format), scales_(scales.contiguous()), rows_(rows) {}

  /// weights, out: [rows].
  void round(int64_t column, const float* weights, float* out) const {
    const int64_t block = column / format_.block_size, inside = column % format_.block_size;
    const int64_t stride = scales_.size(1);
    const float* scales = scales_.const_data_ptr<float>() + block * format_.num_scales;
    parallel_for((rows_ + kRows - 1) / kRows, 1, [&](int64_t first, int64_t last) {
      std::vector<float> values(format_.block_size, 0.0f), rounded(format_.block_size);
      for (int64_t row = first * kRows; row < std::min(rows_, last * kRows); ++row) {
        values[inside] = weights[row];
        format_.fake_quantize(values.data(), scales + row * stride, rounded.data(), 1);
        out[row] = rounded[inside];
      }
    });
  }

 private:
  const Format& format_;
  torch::Tensor scales_;
  int64_t rows_;
};

/// The order in which columns are rounded, and what each asks of those after it.
struct Visits {
  torch::Tensor order;   // [in] int64: columns
  torch::Tensor factor;  // inverse_factor() of the Hessian in that order
};

Visits plan_visits(const torch::Tensor& hessian, const GptqOptions& options) {
  const torch::Tensor order = options.by_energy
                                  ? at::argsort(hessian.diagonal(), /*stable=*/true, /*dim=*/0,
                                                /*descending=*/true)
                                  : at::arange(hessian.size(0));
  return {order, inverse_factor(hessian.index({order}).index({torch::indexing::Slice(), order}),
                                options.damping)};
}

/// Codes for fixed scales, column by column.
GptqResult choose_codes(const Format& format, const torch::Tensor& weights, const Visits& visits,
                        const torch::Tensor& scales) {
  const int64_t rows = weights.size(0), width = weights.size(1);
  const torch::Tensor& factor = visits.factor;
  // Column by column in the order of visits: [width, rows].
  torch::Tensor left = weights.t().index_select(0, visits.order).contiguous();
  torch::Tensor rounded = torch::empty_like(left);
  const Column column(format, scales, rows);
  const int64_t* index = visits.order.const_data_ptr<int64_t>();
  for (int64_t begin = 0; begin < width; begin += kBatch) {
    const int64_t end = std::min(begin + kBatch, width);
    torch::Tensor errors = torch::empty({end - begin, rows});
    for (int64_t i = begin; i < end; ++i) {
      column.round(index[i], left[i].const_data_ptr<float>(), rounded[i].data_ptr<float>());
      torch::Tensor error = errors[i - begin];
      at::sub_out(error, left[i], rounded[i]).div_(factor[i][i]);
      if (i + 1 < end)
        left.slice(0, i + 1, end).addr_(factor[i].slice(0, i + 1, end), error, 1, -1);
    }
    if (end < width)
      left.slice(0, end).addmm_(factor.slice(0, begin, end).slice(1, end).t(), errors, 1, -1);
  }
  const torch::Tensor back = at::argsort(visits.order);
  const auto by_rows = [&](const torch::Tensor& columns) {
    return columns.index_select(0, back).t().contiguous();
  };
  return {by_rows(left), scales, by_rows(rounded)};
}

/// Of each row, whichever loses less of the output.
GptqResult better_rows(const torch::Tensor& weights, const torch::Tensor& hessian,
                       const GptqResult& a, const GptqResult& b) {
  const torch::Tensor a_wins =
      (row_errors(weights, a.rounded, hessian) <= row_errors(weights, b.rounded, hessian))
          .unsqueeze(1);
  return {at::where(a_wins, a.weights, b.weights), at::where(a_wins, a.scales, b.scales),
          at::where(a_wins, a.rounded, b.rounded)};
}

void refit(const Format& format, const torch::Tensor& weights, const torch::Tensor& hessian,
           GptqResult& found) {
  const OnGrid fitted = refit_scales(format, weights, hessian, {found.scales, found.rounded});
  const torch::Tensor same_code =
      fake_quantized(format, found.weights, fitted.scales).eq(fitted.rounded);
  found = {at::where(same_code, found.weights, fitted.rounded), fitted.scales, fitted.rounded};
}

}  // namespace

GptqResult gptq(const Format& format, const torch::Tensor& weights, const torch::Tensor& hessian,
                const torch::Tensor& scales, const GptqOptions& options) {
  const torch::NoGradGuard no_grad;
  const int64_t width = weights.size(1);
  check(hessian.dim() == 2 && hessian.size(0) == width && hessian.size(1) == width, "a Hessian of ",
        hessian.size(0), " inputs for rows of ", width, " weights");
  const Visits visits = plan_visits(hessian, options);
  // Where passing errors on does no good, rows are rounded as they are.
  GptqResult best = {weights, scales, fake_quantized(format, weights, scales)};
  for (int round = 0; round < (options.refit ? options.rounds : 1); ++round) {
    best = better_rows(weights, hessian, choose_codes(format, weights, visits, best.scales), best);
    if (options.refit) refit(format, weights, hessian, best);
  }
  return best;
}

}  // namespace nibble
