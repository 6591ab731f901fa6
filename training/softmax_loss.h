// Loss and logit gradient of one position, fused: softmax of student and teacher, KL divergence,
// cross-entropy and dL/dlogits in three passes over rows that stay in cache.
//
//   KL = sum p_t (ln p_t - ln p_s)         dKL/ds = p_s - p_t
//   CE = -ln p_s[target]                   dCE/ds = p_s - onehot(target)
#pragma once

#include <cstdint>

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

}  // namespace nibble
