#include "training/top_k_records.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "base/float16.h"
#include "base/threads.h"

namespace nibble {
namespace {

constexpr int64_t kShortIds = int64_t{1} << 16;  // as many tokens have numbers of two bytes
constexpr float kLargestHalf = 65504;
/// ln of a probability that is none, for arithmetic that multiplies it with 0.
constexpr double kNever = -1e4;
constexpr float kNone = -std::numeric_limits<float>::infinity();

template <class T>
T read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
std::byte* put(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof value);
  return to + sizeof value;
}

int64_t id_bytes(int64_t vocab) { return vocab <= kShortIds ? 2 : 4; }

/// The tokens of the k largest logits, ascending.
std::vector<int64_t> largest_of(const float* logits, int64_t vocab, int64_t k) {
  const auto before = [&](int64_t a, int64_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };
  std::vector<int64_t> ids(k);  // a heap: in front the least of them
  std::iota(ids.begin(), ids.end(), 0);
  std::make_heap(ids.begin(), ids.end(), before);
  for (int64_t id = k; id < vocab; ++id) {
    if (!before(id, ids.front())) continue;
    std::pop_heap(ids.begin(), ids.end(), before);
    ids.back() = id;
    std::push_heap(ids.begin(), ids.end(), before);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

/// Scaled to a sum of 1, as logarithms.
void normalize(TopOutcomes& outcomes) {
  double most = outcomes.others, sum = 0;
  for (const double log : outcomes.logs) most = std::max(most, log);
  for (const double log : outcomes.logs) sum += std::exp(log - most);
  const double log_sum = most + std::log(sum + std::exp(outcomes.others - most));
  for (double& log : outcomes.logs) log -= log_sum;
  outcomes.others -= log_sum;
}

}  // namespace

TopKRecords::TopKRecords(int64_t k, int64_t vocab)
    : k_(k), vocab_(vocab), id_bytes_(id_bytes(vocab)) {
  if (k < 1 || k > vocab)
    fail_usage("loss.teacher_top_k wants 1 to ", vocab, ", the model's tokens, found ", k);
}

TopKRecords TopKRecords::of_bytes(int64_t bytes, int64_t vocab) {
  const int64_t each = kDistanceBytes + id_bytes(vocab), all = bytes - bytes_of_others();
  check(all > 0 && all % each == 0 && all / each <= vocab, "records of ", bytes,
        " bytes are none of a vocabulary of ", vocab);
  return {all / each, vocab};
}

torch::Tensor TopKRecords::encode(torch::Tensor logits) const {
  const int64_t rows = logits.size(0);
  torch::Tensor records = torch::empty({rows, bytes()}, torch::kUInt8);
  float* from = logits.mutable_data_ptr<float>();
  auto* to = static_cast<std::byte*>(records.mutable_data_ptr());
  parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) encode_row(from + row * vocab_, to + row * bytes());
  });
  return records;
}

void TopKRecords::encode_row(float* logits, std::byte* to) const {
  const std::vector<int64_t> ids = largest_of(logits, vocab_, k_);
  float most = kNone;
  for (const int64_t id : ids) most = std::max(most, logits[id]);
  std::byte* distances = to + bytes_of_others();
  std::byte* numbers = distances + kDistanceBytes * k_;
  bool sound = std::isfinite(most);
  for (const int64_t id : ids) {
    const float distance = logits[id] - most;
    sound = sound && distance <= 0;  // no NaN
    distances = put(distances, float_to_float16(std::max(distance, -kLargestHalf)));
    numbers = id_bytes_ == 2 ? put(numbers, static_cast<uint16_t>(id))
                             : put(numbers, static_cast<uint32_t>(id));
    logits[id] = kNone;
  }
  const float others = k_ < vocab_ ? static_cast<float>(log_sum_exp(logits, vocab_) - most) : kNone;
  check(sound && !std::isnan(others), "the teacher's logits are not finite");
  put(to, others);
}

TopOutcomes TopKRecords::decode(const std::byte* record) const {
  TopOutcomes outcomes;
  const std::byte* distances = record + bytes_of_others();
  const std::byte* ids = distances + kDistanceBytes * k_;
  outcomes.others = read<float>(record);
  check(!std::isnan(outcomes.others) && outcomes.others < std::numeric_limits<float>::infinity(),
        "the others have ", outcomes.others);
  outcomes.ids.resize(k_);
  outcomes.logs.resize(k_);
  int64_t before = -1;
  for (int64_t i = 0; i < k_; ++i) {
    const float distance = float16_to_float(read<uint16_t>(distances + kDistanceBytes * i));
    const int64_t id = id_bytes_ == 2 ? int64_t{read<uint16_t>(ids + 2 * i)}
                                      : int64_t{read<uint32_t>(ids + 4 * i)};
    check(distance <= 0 && distance >= -kLargestHalf, "token ", id, " is ", distance,
          " from the likeliest, wanted 0 or less");
    check(id > before && id < vocab_, "token ", id, " follows ", before, " of ", vocab_);
    outcomes.logs[i] = distance;
    outcomes.ids[i] = before = id;
  }
  normalize(outcomes);
  return outcomes;
}

torch::Tensor TopKRecords::logits_like(const torch::Tensor& records,
                                       const torch::Tensor& student) const {
  const int64_t rows = records.size(0);
  torch::Tensor ids = torch::empty({rows, k_}, torch::kInt64);
  torch::Tensor logs = torch::empty({rows, k_}), others = torch::empty({rows, 1});
  for (int64_t row = 0; row < rows; ++row) {
    const TopOutcomes outcomes =
        decode(static_cast<const std::byte*>(records.const_data_ptr()) + row * bytes());
    std::copy(outcomes.ids.begin(), outcomes.ids.end(), ids.mutable_data_ptr<int64_t>() + row * k_);
    std::copy(outcomes.logs.begin(), outcomes.logs.end(),
              logs.mutable_data_ptr<float>() + row * k_);
    others.mutable_data_ptr<float>()[row] = static_cast<float>(outcomes.others);
  }
  ids = ids.to(student.device());
  torch::Tensor result = at::log_softmax(student, 1);
  const torch::Tensor shares = at::logsumexp(result.scatter(1, ids, kNone), 1, /*keepdim=*/true);
  result.add_(others.to(student.device()) - shares).clamp_min_(kNever);
  return result.scatter_(1, ids, logs.to(student.device()).clamp_min(kNever));
}

}  // namespace nibble
