#include "eval/softmax_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "model/vector.h"

namespace nibble {
namespace {

typedef uint16_t CodeLanes __attribute__((vector_size(kLanes * sizeof(uint16_t))));

// Float sums are kept this short, then added up in double: the error stays that of one float
// rounding.
constexpr int64_t kBlock = 64 * kLanes;
constexpr float kLowestLogProb = -16.0f;

struct Range {
  float least, greatest;
};

NIBBLE_CLONES Range find_range(const float* x, int64_t count) {
  Lanes v, least = Lanes{} + x[0], greatest = least;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    load_lanes(v, x + i);
    least = v < least ? v : least;
    greatest = v > greatest ? v : greatest;
  }
  Range range = {x[0], x[0]};
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    range.least = std::min<float>(range.least, least[lane]);
    range.greatest = std::max<float>(range.greatest, greatest[lane]);
  }
  for (; i < count; ++i) {
    range.least = std::min(range.least, x[i]);
    range.greatest = std::max(range.greatest, x[i]);
  }
  return range;
}

NIBBLE_CLONES double sum_exp(const float* x, int64_t count, float max) {
  double total = 0;
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t end = std::min(count, start + kBlock);
    Lanes v, sums{};
    int64_t i = start;
    for (; i + kLanes <= end; i += kLanes) {
      load_lanes(v, x + i);
      v = v - max;
      exp_lanes(v);
      sums += v;
    }
    load_some(v, x + i, end - i, -std::numeric_limits<float>::infinity());
    v = v - max;
    exp_lanes(v);
    total += sum_lanes(sums + v);
  }
  return total;
}

NIBBLE_CLONES void encode_codes(const float* logits, int64_t vocab, float least, float inverse_step,
                                uint16_t* codes) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the integer ends up in the low bits
  Lanes v;
  IntLanes bits;
  for (int64_t i = 0; i < vocab; i += kLanes) {
    const int64_t count = std::min(kLanes, vocab - i);
    if (count == kLanes)
      load_lanes(v, logits + i);
    else
      load_some(v, logits + i, count, least);
    v = (v > least ? v - least : Lanes{}) * inverse_step + kRound;
    std::memcpy(&bits, &v, sizeof bits);
    const CodeLanes narrow = __builtin_convertvector(bits, CodeLanes);
    std::memcpy(codes + i, &narrow, count * sizeof(uint16_t));
  }
}

struct BaseScan {
  double kld = 0;
  float greatest = 0;  // ln p
};

/// One block of entries' share of the KLD, and their greatest ln p (kept in `greatest`).
NIBBLE_INLINE void diverge_lanes(const CodeLanes& codes, const Lanes& logits, float step,
                                 float lowest, float log_normalizer, Lanes& sums, Lanes& greatest) {
  const Lanes log_p = __builtin_convertvector(codes, Lanes) * step + lowest;
  greatest = log_p > greatest ? log_p : greatest;
  Lanes p = log_p;
  exp_lanes(p);
  const Lanes term = p * (log_p - logits + log_normalizer);
  sums += log_p > kLowestLogProb ? term : Lanes{};
}

NIBBLE_CLONES BaseScan scan_base(const float* logits, const uint16_t* codes, int64_t vocab,
                                 float step, float lowest, float log_normalizer) {
  Lanes v, greatest = Lanes{} + lowest;
  CodeLanes c;
  BaseScan scan;
  int64_t i = 0;
  while (i + kLanes <= vocab) {
    Lanes sums{};
    const int64_t end = std::min(vocab - kLanes, i + kBlock - kLanes);
    for (; i <= end; i += kLanes) {
      load_lanes(v, logits + i);
      std::memcpy(&c, codes + i, sizeof c);
      diverge_lanes(c, v, step, lowest, log_normalizer, sums, greatest);
    }
    scan.kld += sum_lanes(sums);
  }
  scan.greatest = lowest;
  for (int64_t lane = 0; lane < kLanes; ++lane)
    scan.greatest = std::max<float>(scan.greatest, greatest[lane]);
  for (; i < vocab; ++i) {
    const float log_p = step * codes[i] + lowest;
    scan.greatest = std::max(scan.greatest, log_p);
    if (log_p > kLowestLogProb) scan.kld += std::exp(log_p) * (log_p - logits[i] + log_normalizer);
  }
  return scan;
}

struct BaseRow {
  float step, lowest;
  const uint16_t* codes;
  float log_prob(int32_t token) const { return step * codes[token] + lowest; }
};

BaseRow read_base_row(const uint16_t* row) {
  BaseRow base;
  std::memcpy(&base.step, row, sizeof(float));
  std::memcpy(&base.lowest, row + 2, sizeof(float));
  base.codes = row + kBaseRowHeader;
  return base;
}

}  // namespace

LogSumExp log_sum_exp(const float* logits, int64_t vocab) {
  const float max = find_range(logits, vocab).greatest;
  return {max, std::log(sum_exp(logits, vocab, max))};
}

double negative_log_likelihood(const float* logits, int64_t vocab, int32_t token) {
  const LogSumExp norm = log_sum_exp(logits, vocab);
  return norm.log_sum - (logits[token] - norm.max);
}

void encode_base_row(const float* logits, int64_t vocab, uint16_t* row) {
  const Range range = find_range(logits, vocab);
  const float least = std::max(range.least, range.greatest + kLowestLogProb);
  const float log_sum = std::log(sum_exp(logits, vocab, range.greatest));
  const float step = (range.greatest - least) / 65535.0f;
  const float lowest = least - range.greatest - log_sum;
  std::memcpy(row, &step, sizeof step);
  std::memcpy(row + 2, &lowest, sizeof lowest);
  uint16_t* codes = row + kBaseRowHeader;
  codes[base_row_size(vocab) - kBaseRowHeader - 1] = 0;  // the padding of an odd vocabulary
  if (step > 0)
    encode_codes(logits, vocab, least, 1 / step, codes);
  else
    std::fill(codes, codes + vocab, uint16_t{0});
}

TokenDivergence token_divergence(const float* logits, const uint16_t* base_row, int64_t vocab,
                                 int32_t token) {
  const BaseRow base = read_base_row(base_row);
  const LogSumExp norm = log_sum_exp(logits, vocab);
  const float log_normalizer = norm.max + static_cast<float>(norm.log_sum);
  const BaseScan scan =
      scan_base(logits, base.codes, vocab, base.step, base.lowest, log_normalizer);
  const int64_t top = std::find(logits, logits + vocab, norm.max) - logits;
  int64_t top_base = 0;
  while (top_base < vocab && base.log_prob(top_base) != scan.greatest) ++top_base;
  TokenDivergence result;
  result.nll = log_normalizer - logits[token];
  result.nll_base = -base.log_prob(token);
  result.kld = static_cast<float>(scan.kld);
  result.dp = std::exp(-result.nll) - std::exp(-result.nll_base);
  result.same_top = top == top_base;
  return result;
}

}  // namespace nibble
