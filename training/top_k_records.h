// What a teacher says of a position in few bytes: its K likeliest tokens, and how much all others
// have together. A record is
//
//   float32      ln(sum of the others' exponentials) - the largest logit; -inf: there are none
//   float16 [K]  logit - the largest logit of each
//   u16 [K]      the tokens, ascending; u32 where the vocabulary has more than 65,536
//
// float16 keeps 11 bits of a distance that is near 0 where a probability is large: what it rounds
// moves a KL divergence in the second order, by some 1e-7 nats. Outcomes are scaled to a sum of 1
// as they are read, so that no rounding makes a KL negative.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/fake/torch.h"
#include "training/softmax_loss.h"

namespace nibble {

class TopKRecords {
 public:
  /// Throws Error (usage), naming loss.teacher_top_k, for a K that the vocabulary does not have.
  TopKRecords(int64_t k, int64_t vocab);

  int64_t bytes() const { return bytes_of_others() + k_ * (kDistanceBytes + id_bytes_); }
  /// [n, V] float32 logits on the CPU, overwritten -> [n, bytes()] uint8. Of tokens with equal
  /// logits the first are taken. Throws for logits that give no probabilities.
  torch::Tensor encode(torch::Tensor logits) const;
  /// Throws for what encode() does not write: the record may be from a file.
  TopOutcomes decode(const std::byte* record) const;
  /// The records [n, bytes()] as logits [n, V] that have their outcomes: among the others the
  /// teacher's probabilities are taken to lie as the student's do, whose logits are given, which
  /// leaves KL divergence and gradient those of the outcomes. On the student's device.
  torch::Tensor logits_like(const torch::Tensor& records, const torch::Tensor& student) const;
  /// Records of this size, of a K that is not known.
  static TopKRecords of_bytes(int64_t bytes, int64_t vocab);

 private:
  static constexpr int64_t kDistanceBytes = 2;
  static constexpr int64_t bytes_of_others() { return sizeof(float); }
  void encode_row(float* logits, std::byte* to) const;

  int64_t k_, vocab_, id_bytes_;
};

}  // namespace nibble
