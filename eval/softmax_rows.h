// What evaluation needs of one row of logits: one or two passes over the vocabulary, sixteen
// entries at a time. No torch. Formulas as in llama.cpp tools/perplexity/perplexity.cpp, so that
// both programs print the same figures.
#pragma once

#include <cstdint>

namespace nibble {

struct LogSumExp {
  float max = 0;
  double log_sum = 0;  // ln sum e^(logit - max)
};
LogSumExp log_sum_exp(const float* logits, int64_t vocab);

/// -ln p(token), nats.
double negative_log_likelihood(const float* logits, int64_t vocab, int32_t token);

// llama.cpp's 16-bit form of a row of log-probabilities: float step, float lowest, then a code per
// vocabulary entry, ln p = lowest + step * code (padded to an even number). The range is cut off 16
// nats below the maximum.
constexpr int64_t kBaseRowHeader = 4;  // uint16s: two floats
/// uint16s of a row.
constexpr int64_t base_row_size(int64_t vocab) { return (vocab + 1) / 2 * 2 + kBaseRowHeader; }
void encode_base_row(const float* logits, int64_t vocab, uint16_t* row);

/// One scored token of a model (q) against the base (p).
struct TokenDivergence {
  float nll = 0, nll_base = 0;  // of the text's token, nats
  float kld = 0;                // sum p ln(p / q) over entries with ln p > -16, nats
  float dp = 0;                 // q(token) - p(token)
  bool same_top = false;        // both find the same token the most probable
};
TokenDivergence token_divergence(const float* logits, const uint16_t* base_row, int64_t vocab,
                                 int32_t token);

}  // namespace nibble
