// Attention as LibTorch has none: scores that are capped, cap tanh(q k / cap) (Gemma 2,
// arXiv:2408.00118), and sinks, a score of each head that takes its share of the softmax and gives
// no value (gpt-oss, arXiv:2508.10925). As in FlashAttention (arXiv:2205.14135) the backward pass
// computes scores anew, so that what is kept for it grows with the positions, not with their
// square.
#pragma once

#include "model/attention.h"
#include "quant/fake/torch.h"

namespace nibble {

/// q: [S, H, T, d], k and v: [S, G, P, d], G a divisor of H. The last T of P positions attend to
/// all up to themselves: [S, H, T, d]. rule.scale is positive.
torch::Tensor tiled_attention(const torch::Tensor& q, const torch::Tensor& k,
                              const torch::Tensor& v, const AttentionRule& rule);

}  // namespace nibble
