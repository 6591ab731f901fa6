#include "quant/fake/on_grid.h"

#include <functional>
#include <span>

#include "base/threads.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

/// Calls body(first weight, first scale, first block, blocks) for each row, on all threads.
void for_each_row(const Format& format, const torch::Tensor& weights,
                  const std::function<void(int64_t, int64_t, int64_t, int64_t)>& body) {
  const int64_t length = weights.size(-1), blocks = length / format.block_size;
  parallel_for(weights.numel() / length, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      body(row * length, row * blocks * format.num_scales, row * blocks, blocks);
  });
}

}  // namespace

torch::Tensor chosen_scales(const Format& format, const torch::Tensor& weights,
                            const torch::Tensor& importance, EncodeMethod method) {
  const int64_t length = weights.size(-1), rows = weights.numel() / length;
  // Matrices with columns of an importance of their own.
  const int64_t matrices = importance.defined() ? importance.numel() / length : 1;
  const int64_t matrix_rows = rows / matrices,
                matrix_scales = matrix_rows * (length / format.block_size) * format.num_scales;
  torch::Tensor scales = torch::empty({rows, length / format.block_size * format.num_scales});
  for (int64_t i = 0; i < matrices; ++i) {
    std::span<const float> shared;
    if (importance.defined())
      shared = {importance.const_data_ptr<float>() + i * length, static_cast<size_t>(length)};
    const std::vector<std::byte> blocks =
        encode_tensor(format.type,
                      {weights.const_data_ptr<float>() + i * matrix_rows * length,
                       static_cast<size_t>(matrix_rows * length)},
                      length, shared, method, i * matrix_rows);
    format.scales_of(blocks.data(), scales.mutable_data_ptr<float>() + i * matrix_scales,
                     matrix_scales / format.num_scales);
  }
  return scales;
}

torch::Tensor fake_quantized(const Format& format, const torch::Tensor& weights,
                             const torch::Tensor& scales) {
  torch::Tensor rounded = torch::empty_like(weights);
  const float *from = weights.const_data_ptr<float>(), *with = scales.const_data_ptr<float>();
  float* to = rounded.mutable_data_ptr<float>();
  for_each_row(format, weights, [&](int64_t weight, int64_t scale, int64_t, int64_t blocks) {
    format.fake_quantize(from + weight, with + scale, to + weight, blocks);
  });
  return rounded;
}

std::vector<std::byte> encoded(const Format& format, const torch::Tensor& weights,
                               const torch::Tensor& scales) {
  std::vector<std::byte> bytes(weights.numel() / format.block_size * format.block_bytes);
  const float *from = weights.const_data_ptr<float>(), *with = scales.const_data_ptr<float>();
  for_each_row(format, weights, [&](int64_t weight, int64_t scale, int64_t block, int64_t blocks) {
    thread_local std::vector<float> snapped;
    snapped.resize(blocks * format.num_scales);
    format.snap(with + scale, snapped.data(), blocks);
    format.encode_with(from + weight, snapped.data(), bytes.data() + block * format.block_bytes,
                       blocks);
  });
  return bytes;
}

torch::Tensor row_errors(const torch::Tensor& weights, const torch::Tensor& rounded,
                         const torch::Tensor& hessian) {
  const torch::Tensor difference = weights - rounded;
  return (at::mm(difference, hessian) * difference).sum(1, /*keepdim=*/false, torch::kFloat64);
}

double output_error(const torch::Tensor& weights, const torch::Tensor& rounded,
                    const torch::Tensor& hessian) {
  return row_errors(weights, rounded, hessian).sum().item<double>();
}

}  // namespace nibble
