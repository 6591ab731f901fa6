#include "model/tiled_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Queries whose scores exist at once.
constexpr int64_t kRows = 256;

/// Some queries of a sequence and the keys that any of them attends to. Heads that share a key go
/// through its matmul as rows: [S, G, r T, d].
struct Piece {
  int64_t begin, rows;       // of the queries
  int64_t first, positions;  // of the keys

  torch::Tensor queries(const torch::Tensor& x) const {  // [S, G, r, T, d] -> [S, G, r rows, d]
    return x.narrow(3, begin, rows).flatten(2, 3);
  }
  torch::Tensor keys(const torch::Tensor& x) const { return x.narrow(2, first, positions); }
  /// [S, G, r rows, n] -> [S, G, r, rows, n]
  torch::Tensor by_head(const torch::Tensor& x) const { return x.unflatten(2, {-1, rows}); }
};

std::vector<Piece> pieces_of(int64_t queries, int64_t positions, int64_t window) {
  std::vector<Piece> pieces;
  for (int64_t begin = 0; begin < queries; begin += kRows) {
    const int64_t rows = std::min(kRows, queries - begin), before = positions - queries + begin;
    const int64_t first = window > 0 ? std::max<int64_t>(0, before - window + 1) : 0;
    pieces.push_back({begin, rows, first, before + rows - first});
  }
  return pieces;
}

/// b = tanh(q k scale / cap), or q k scale without a cap: [S, G, r, rows, positions] float32.
torch::Tensor bounded_scores(const Piece& piece, const torch::Tensor& q, const torch::Tensor& k,
                             const AttentionRule& rule) {
  const torch::Tensor products =
      at::matmul(piece.queries(q), piece.keys(k).transpose(-1, -2)).to(torch::kFloat32);
  if (rule.cap > 0) return piece.by_head(products).mul_(rule.scale / rule.cap).tanh_();
  return piece.by_head(products).mul_(rule.scale);
}

/// Capped, and without what a query does not attend to; without a cap in the place of `bounded`.
torch::Tensor masked_scores(const Piece& piece, const torch::Tensor& bounded,
                            const AttentionRule& rule) {
  const torch::Tensor seen =
      causal_mask(piece.rows, piece.positions, rule.window, bounded.options());
  const torch::Tensor scores = rule.cap > 0 ? bounded * rule.cap : bounded;
  return scores.masked_fill_(seen.logical_not(), -std::numeric_limits<float>::infinity());
}

class TiledAttention : public torch::autograd::Function<TiledAttention> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& q, const torch::Tensor& k,
                               const torch::Tensor& v, const torch::Tensor& sinks, int64_t window,
                               double scale, double cap) {
    const AttentionRule rule{window, scale, cap, sinks};
    const torch::Tensor grouped = q.unflatten(1, {k.size(1), -1});
    // Positions lie together, as those who join heads want them.
    torch::Tensor out =
        torch::empty({q.size(0), q.size(2), q.size(1), q.size(3)}, q.options()).transpose(1, 2);
    torch::Tensor log_sums =
        torch::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(torch::kFloat32));
    const torch::Tensor grouped_out = out.unflatten(1, {k.size(1), -1}),
                        grouped_sums = log_sums.unflatten(1, {k.size(1), -1});
    for (const Piece& piece : pieces_of(q.size(2), k.size(2), window)) {
      const torch::Tensor scores =
          masked_scores(piece, bounded_scores(piece, grouped, k, rule), rule);
      torch::Tensor sums = at::logsumexp(scores, {-1});
      if (sinks.numel() > 0) sums = at::logaddexp(sums, sinks.view({k.size(1), -1, 1}));
      const torch::Tensor shares =
          at::exp(scores - sums.unsqueeze(-1)).to(q.scalar_type()).flatten(2, 3);
      grouped_out.narrow(3, piece.begin, piece.rows)
          .copy_(piece.by_head(at::matmul(shares, piece.keys(v))));
      grouped_sums.narrow(3, piece.begin, piece.rows).copy_(sums);
    }
    ctx->save_for_backward({q, k, v, out, log_sums, sinks});
    ctx->saved_data["window"] = window;
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["cap"] = cap;
    return out;
  }

  // With shares p of scores s = cap b, b = tanh(q k scale / cap): dL/ds = p (dL/dp - dL/dout out),
  // dL/d(q k) = dL/ds (1 - b^2) scale, without the square where there is no cap. A sink's share
  // gives nothing, so it only loses: -p dL/dout out.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const torch::Tensor &q = saved[0], &k = saved[1], &v = saved[2];
    const AttentionRule rule{ctx->saved_data["window"].toInt(), ctx->saved_data["scale"].toDouble(),
                             ctx->saved_data["cap"].toDouble(), saved[5]};
    const auto grouped = [&](const torch::Tensor& x) { return x.unflatten(1, {k.size(1), -1}); };
    const torch::Tensor queries = grouped(q), grad_out = grouped(grads[0]);
    const torch::Tensor log_sums = grouped(saved[4]);
    const torch::Tensor weighted = (grad_out * grouped(saved[3])).sum({-1}, true, torch::kFloat32);
    torch::Tensor grad_q = torch::empty_like(q), grad_k = torch::zeros_like(k),
                  grad_v = torch::zeros_like(v);
    const torch::Tensor grouped_grad = grouped(grad_q);
    for (const Piece& piece : pieces_of(q.size(2), k.size(2), rule.window)) {
      const auto rows = [&](const torch::Tensor& x) {
        return x.narrow(3, piece.begin, piece.rows);
      };
      const torch::Tensor bounded = bounded_scores(piece, queries, k, rule);
      const torch::Tensor shares =
          at::exp(masked_scores(piece, bounded, rule) - rows(log_sums).unsqueeze(-1));
      const torch::Tensor out = piece.queries(grad_out);
      piece.keys(grad_v).add_(
          at::matmul(shares.to(q.scalar_type()).flatten(2, 3).transpose(-1, -2), out));
      const torch::Tensor of_shares =
          piece.by_head(at::matmul(out, piece.keys(v).transpose(-1, -2)).to(torch::kFloat32));
      torch::Tensor of_scores = (of_shares - rows(weighted)).mul_(shares).mul_(rule.scale);
      if (rule.cap > 0) of_scores.mul_(1 - bounded.square());
      const torch::Tensor of_products = of_scores.to(q.scalar_type()).flatten(2, 3);
      rows(grouped_grad).copy_(piece.by_head(at::matmul(of_products, piece.keys(k))));
      piece.keys(grad_k).add_(at::matmul(of_products.transpose(-1, -2), piece.queries(queries)));
    }
    torch::Tensor grad_sinks;
    if (ctx->needs_input_grad(3)) {
      const torch::Tensor shares = at::exp(rule.sinks.view({1, k.size(1), -1, 1}) - log_sums);
      grad_sinks = -(shares * weighted.squeeze(-1)).sum({0, 3}).flatten();
    }
    return {grad_q, grad_k, grad_v, grad_sinks, {}, {}, {}};
  }
};

}  // namespace

torch::Tensor tiled_attention(const torch::Tensor& q, const torch::Tensor& k,
                              const torch::Tensor& v, const AttentionRule& rule) {
  // An argument of a differentiable function cannot be undefined.
  const torch::Tensor sinks = rule.sinks.defined() ? rule.sinks : at::empty({0}, q.options());
  return TiledAttention::apply(q, k, v, sinks, rule.window, rule.scale, rule.cap);
}

}  // namespace nibble
