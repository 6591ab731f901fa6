#include "model/attention.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "model/tiled_attention.h"

namespace nibble {
namespace {

/// [S * L, H, d] -> [S, H, L, d], a view.
torch::Tensor as_heads(const torch::Tensor& x, int64_t sequences) {
  return x.view({sequences, x.size(0) / sequences, x.size(1), x.size(2)}).transpose(1, 2);
}

/// q [S, H, T, d], k and v [S, G, P, d]: the last T of P positions attend.
torch::Tensor attend_heads(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                           const AttentionRule& rule) {
  if (rule.cap > 0 || rule.sinks.defined()) return tiled_attention(q, k, v, rule);
  const int64_t rows = q.size(2), positions = k.size(2);
  const bool has_window = rule.window > 0 && rule.window < positions;
  // A single row attends to all; equally many are what is_causal means.
  const bool is_causal = !has_window && rows == positions;
  std::optional<torch::Tensor> mask;
  if (has_window || (!is_causal && rows > 1))
    mask = causal_mask(rows, positions, rule.window, q.options());
  return at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0, is_causal, rule.scale,
                                          /*enable_gqa=*/q.size(1) != k.size(1));
}

/// `sequences` documents of equal length.
torch::Tensor attend_equal(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                           int64_t sequences, const AttentionRule& rule) {
  const torch::Tensor out =
      attend_heads(as_heads(q, sequences), as_heads(k, sequences), as_heads(v, sequences), rule);
  return out.transpose(1, 2).reshape({q.size(0), q.size(1) * q.size(2)});
}

}  // namespace

torch::Tensor causal_mask(int64_t rows, int64_t positions, int64_t window,
                          const torch::TensorOptions& options) {
  const torch::Tensor mask =
      at::ones({rows, positions}, options.dtype(torch::kBool)).tril(positions - rows);
  return window > 0 ? mask.triu(positions - rows - window + 1) : mask;
}

Packing pack_documents(const Batch& batch) {
  const int64_t rows = batch.tokens.size(0), length = batch.tokens.size(1);
  Packing packing;
  if (!batch.document.defined()) {
    packing.lengths.assign(rows, length);
    packing.longest = length;
    packing.positions = at::arange(length, batch.tokens.options()).repeat({rows});
    return packing;
  }
  const torch::Tensor documents = batch.document.cpu().contiguous();
  check(documents.sizes() == batch.tokens.sizes(),
        "batch.document has another shape than batch.tokens");
  const int64_t* document = documents.data_ptr<int64_t>();
  torch::Tensor positions = torch::empty({rows * length}, torch::kInt64);
  int64_t* position = positions.data_ptr<int64_t>();
  for (int64_t i = 0; i < rows * length; ++i) {
    const bool starts = i % length == 0 || document[i] != document[i - 1];
    if (starts) packing.lengths.push_back(0);
    position[i] = packing.lengths.back()++;
    packing.longest = std::max(packing.longest, packing.lengths.back());
  }
  packing.positions = positions.to(batch.tokens.device());
  return packing;
}

torch::Tensor attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                     const Packing& packing, torch::Dtype dtype, const AttentionRule& rule) {
  const std::vector<int64_t>& lengths = packing.lengths;
  const torch::Tensor queries = q.to(dtype), keys = k.to(dtype), values = v.to(dtype);
  if (std::all_of(lengths.begin(), lengths.end(), [&](int64_t n) { return n == lengths[0]; }))
    return attend_equal(queries, keys, values, lengths.size(), rule).to(torch::kFloat32);
  std::vector<torch::Tensor> parts;
  int64_t start = 0;
  for (const int64_t length : lengths) {
    parts.push_back(attend_equal(queries.narrow(0, start, length), keys.narrow(0, start, length),
                                 values.narrow(0, start, length), 1, rule));
    start += length;
  }
  return at::cat(parts).to(torch::kFloat32);
}

torch::Tensor attend_cached(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                            torch::Dtype dtype, const AttentionRule& rule) {
  const torch::Tensor out = attend_heads(as_heads(q.to(dtype), 1), as_heads(k.to(dtype), 1),
                                         as_heads(v.to(dtype), 1), rule);
  return out.transpose(1, 2).reshape({q.size(0), q.size(1) * q.size(2)}).to(torch::kFloat32);
}

}  // namespace nibble
