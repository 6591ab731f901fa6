#include "training/softmax_loss.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// Lanes never cross a function that is not inlined, so the vector ABI that GCC warns of is not
// used.
#pragma GCC diagnostic ignored "-Wpsabi"
#define NIBBLE_INLINE inline __attribute__((always_inline))
// One body, compiled for each; the dynamic loader picks.
#if defined(__x86_64__)
#define NIBBLE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define NIBBLE_CLONES
#endif

namespace nibble {
namespace {

constexpr int64_t kLanes = 16;
/// Exponentials summed in float32 before the sum moves on to float64.
constexpr int64_t kRun = 1024;
/// Stands in for logits past the end of a row: its exponential vanishes.
constexpr float kNothing = -1e30f;
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));

NIBBLE_INLINE Floats load(const float* from, int64_t count) {
  Floats lanes;
  if (count >= kLanes) {
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
  }
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = i < count ? from[i] : kNothing;
  return lanes;
}

NIBBLE_INLINE void store(float* to, const Floats& lanes, int64_t count) {
  std::memcpy(to, &lanes, sizeof(float) * std::min(count, kLanes));
}

NIBBLE_INLINE float largest(const float* row, int64_t count) {
  Floats most = Floats{} + kNothing;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats x = load(row + i, count - i);
    most = x > most ? x : most;
  }
  float result = most[0];
  for (int64_t i = 1; i < kLanes; ++i) result = std::max(result, most[i]);
  return result;
}

/// e^x for x <= 0: 2^n e^r with |r| <= ln(2)/2, and the Taylor polynomial of e^r to r^7, whose
/// remainder there is below 6e-9. Below -87 it stays at e^-87, which no sum notices. NaN gives NaN.
NIBBLE_INLINE Floats exponential(const Floats& power) {
  const Floats x = power < -87.0f ? Floats{} - 87.0f : power;
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low bits
  const Floats shifted = x * 1.44269504f + kShift;
  const Floats n = shifted - kShift;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts
  Floats sum = r * (1.0f / 5040) + (1.0f / 720);
  sum = sum * r + (1.0f / 120);
  sum = sum * r + (1.0f / 24);
  sum = sum * r + (1.0f / 6);
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  Ints bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000;
  Floats scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return sum * scale;
}

NIBBLE_INLINE double sum_of(const Floats& lanes) {
  double sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

struct RowSums {
  double student = 0, teacher = 0;  // of exponentials
  double cross = 0;                 // sum e^t (t - s)
};

/// Rows become exponentials of their distance to their maximum, and are summed.
template <bool kTeacher>
NIBBLE_INLINE RowSums exponentiate(float* student, float* teacher, int64_t vocab, float student_max,
                                   float teacher_max) {
  RowSums sums;
  for (int64_t begin = 0; begin < vocab; begin += kRun) {
    Floats students{}, teachers{}, crosses{};
    for (int64_t i = begin; i < std::min(vocab, begin + kRun); i += kLanes) {
      const Floats s = load(student + i, vocab - i) - student_max;
      const Floats es = exponential(s);
      students += es;
      store(student + i, es, vocab - i);
      if constexpr (kTeacher) {
        const Floats t = load(teacher + i, vocab - i) - teacher_max;
        const Floats et = exponential(t);
        teachers += et;
        crosses += et * (t - s);
        store(teacher + i, et, vocab - i);
      }
    }
    sums.student += sum_of(students);
    sums.teacher += sum_of(teachers);
    sums.cross += sum_of(crosses);
  }
  return sums;
}

/// dL/dlogits = a e^s - b e^t, in place of e^s.
template <bool kTeacher>
NIBBLE_INLINE void combine(float* student, const float* teacher, int64_t vocab, float a, float b) {
  for (int64_t i = 0; i < vocab; i += kLanes) {
    Floats gradient = load(student + i, vocab - i) * a;
    if constexpr (kTeacher) gradient -= load(teacher + i, vocab - i) * b;
    store(student + i, gradient, vocab - i);
  }
}

template <bool kTeacher>
NIBBLE_INLINE PositionLoss row_loss(float* student, float* teacher, int64_t vocab, int64_t target,
                                    const PositionWeights& weights) {
  const float student_max = largest(student, vocab);
  const float teacher_max = kTeacher ? largest(teacher, vocab) : 0.0f;
  const double distance = target < 0 ? 0.0 : static_cast<double>(student[target]) - student_max;
  const RowSums sums = exponentiate<kTeacher>(student, teacher, vocab, student_max, teacher_max);
  PositionLoss loss;
  if (kTeacher)
    loss.kl = sums.cross / sums.teacher - std::log(sums.teacher) + std::log(sums.student);
  if (target >= 0) loss.ce = std::log(sums.student) - distance;
  if (!weights.gradient) return loss;
  const float kl = kTeacher ? weights.kl : 0.0f, ce = target < 0 ? 0.0f : weights.ce;
  combine<kTeacher>(student, teacher, vocab, static_cast<float>((kl + ce) / sums.student),
                    kTeacher ? static_cast<float>(kl / sums.teacher) : 0.0f);
  if (target >= 0) student[target] -= ce;
  return loss;
}

/// The likeliest tokens' logits are taken out of the row, so that the others' share is a sum of its
/// own: as 1 - (what those have) it would have no digit left where the student is sure.
NIBBLE_INLINE PositionLoss top_row_loss(float* student, const TopOutcomes& teacher, int64_t vocab,
                                        int64_t target, const PositionWeights& weights) {
  const auto count = static_cast<int64_t>(teacher.ids.size());
  const float most = largest(student, vocab);
  const double distance = target < 0 ? 0.0 : static_cast<double>(student[target]) - most;
  std::vector<double> logits(count);
  double top_sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    float& logit = student[teacher.ids[i]];
    logits[i] = static_cast<double>(logit) - most;
    top_sum += std::exp(logits[i]);
    logit = kNothing;
  }
  const double others_sum =
      count < vocab ? exponentiate<false>(student, nullptr, vocab, most, 0.0f).student : 0.0;
  const double sum = top_sum + others_sum, log_sum = std::log(sum);
  PositionLoss loss;
  for (int64_t i = 0; i < count; ++i)
    loss.kl += std::exp(teacher.logs[i]) * (teacher.logs[i] - logits[i] + log_sum);
  const double others = count < vocab ? std::exp(teacher.others) : 0.0;
  if (others > 0) loss.kl += others * (teacher.others - std::log(others_sum) + log_sum);
  if (loss.kl < 0) loss.kl = 0;  // rounding; a NaN stays
  if (target >= 0) loss.ce = log_sum - distance;
  if (!weights.gradient) return loss;
  const double kl = weights.kl, ce = target < 0 ? 0.0 : weights.ce;
  if (count < vocab)
    combine<false>(student, nullptr, vocab,
                   static_cast<float>((kl + ce) / sum - kl * others / others_sum), 0.0f);
  for (int64_t i = 0; i < count; ++i)
    student[teacher.ids[i]] =
        static_cast<float>((kl + ce) * std::exp(logits[i]) / sum - kl * std::exp(teacher.logs[i]));
  if (target >= 0) student[target] -= static_cast<float>(ce);
  return loss;
}

NIBBLE_CLONES PositionLoss loss_with_teacher(float* student, float* teacher, int64_t vocab,
                                             int64_t target, const PositionWeights& weights) {
  return row_loss<true>(student, teacher, vocab, target, weights);
}

NIBBLE_CLONES PositionLoss loss_alone(float* student, float* teacher, int64_t vocab, int64_t target,
                                      const PositionWeights& weights) {
  return row_loss<false>(student, teacher, vocab, target, weights);
}

NIBBLE_CLONES PositionLoss loss_with_top(float* student, const TopOutcomes& teacher, int64_t vocab,
                                         int64_t target, const PositionWeights& weights) {
  return top_row_loss(student, teacher, vocab, target, weights);
}

NIBBLE_CLONES double log_sum(float* logits, int64_t vocab) {
  const float most = largest(logits, vocab);
  return most + std::log(exponentiate<false>(logits, nullptr, vocab, most, 0.0f).student);
}

}  // namespace

PositionLoss softmax_loss(float* student, float* teacher, int64_t vocab, int64_t target,
                          const PositionWeights& weights) {
  return teacher ? loss_with_teacher(student, teacher, vocab, target, weights)
                 : loss_alone(student, teacher, vocab, target, weights);
}

PositionLoss top_outcomes_loss(float* student, const TopOutcomes& teacher, int64_t vocab,
                               int64_t target, const PositionWeights& weights) {
  return loss_with_top(student, teacher, vocab, target, weights);
}

double log_sum_exp(float* logits, int64_t vocab) { return log_sum(logits, vocab); }

}  // namespace nibble
