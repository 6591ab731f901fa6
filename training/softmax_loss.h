// Loss and logit gradient of one position, fused: softmax of student and teacher, KL divergence,
// cross-entropy and dL/dlogits in three passes over rows that stay in cache.
//
//   KL = sum p_t (ln p_t - ln p_s)         dKL/ds = p_s - p_t
//   CE = -ln p_s[target]                   dCE/ds = p_s - onehot(target)
//
// Of a teacher of which only the K likeliest tokens are known, and how much all others have
// together, KL is that of K+1 outcomes: those tokens, and "another". With R for the others and
// P(R), Q(R) for the teacher's and the student's share of them,
//
//   KL = sum_top p_t (ln p_t - ln p_s) + P(R) (ln P(R) - ln Q(R))
//   dKL/ds = p_s - p_t at the top tokens, p_s (1 - P(R) / Q(R)) at all others
//
// which is never more than the KL over all tokens, and less by P(R) times the KL of the two within
// R.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace nibble {

struct PositionLoss {
  double kl = 0;  // nats; 0 without a teacher
  double ce = 0;  // nats; 0 without a target
};

struct PositionWeights {
  float kl = 0, ce = 0;  // of the position in the loss
  bool gradient = true;  // false: only the loss is wanted
};

/// student: `vocab` logits, overwritten with dL/dlogits. teacher: as many, overwritten (scratch),
/// or nullptr: no KL. target: the next token, or -1: no cross-entropy. A logit that is not finite
/// makes the result not finite. The same result on every instruction set: sums are made in sixteen
/// lanes everywhere.
PositionLoss softmax_loss(float* student, float* teacher, int64_t vocab, int64_t target,
                          const PositionWeights& weights);

/// What a teacher gives its likeliest tokens, and all others together. The probabilities add up
/// to 1.
struct TopOutcomes {
  std::vector<int64_t> ids;                                  // ascending
  std::vector<double> logs;                                  // ln p_t of each
  double others = -std::numeric_limits<double>::infinity();  // ln P(R)
};

/// As softmax_loss(), with the KL of those outcomes. Ids are below vocab.
PositionLoss top_outcomes_loss(float* student, const TopOutcomes& teacher, int64_t vocab,
                               int64_t target, const PositionWeights& weights);

/// ln of the sum of the logits' exponentials. The row is overwritten; logits of -inf add nothing.
double log_sum_exp(float* logits, int64_t vocab);

}  // namespace nibble
