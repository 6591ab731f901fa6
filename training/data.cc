#include "training/data.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/threads.h"
#include "training/text_files.h"

namespace nibble {
namespace {

/// SplitMix64 (Steele, Lea, Flood 2014). The standard library's distributions differ between
/// implementations, and data must not.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15ULL;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
    return x ^ x >> 31;
  }
  /// 0 .. count-1. The modulo's bias is below count / 2^64.
  int64_t below(int64_t count) { return static_cast<int64_t>(next() % count); }

 private:
  uint64_t state_;
};

std::vector<int64_t> permutation(int64_t count, uint64_t seed) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  Random random(seed);
  for (int64_t i = count - 1; i > 0; --i) std::swap(order[i], order[random.below(i + 1)]);
  return order;
}

/// Documents laid end to end: a token, and the number of the document it is from.
struct Stream {
  std::vector<int64_t> tokens, document;
  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
};

Stream tokenize(const std::vector<std::string>& documents, const Tokenizer& tokenizer,
                uint64_t seed) {
  const auto count = static_cast<int64_t>(documents.size());
  std::vector<std::vector<int32_t>> ids(count);
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      ids[i] = tokenizer.encode(documents[i], /*add_special=*/true, /*parse_special=*/false);
  });
  Stream stream;
  for (int64_t i : document_order(count, seed)) {
    stream.tokens.insert(stream.tokens.end(), ids[i].begin(), ids[i].end());
    stream.document.insert(stream.document.end(), ids[i].size(), i);
  }
  return stream;
}

/// Where the held-out part begins: so far before the end that it has the wanted share, moved to a
/// document's border where that neither doubles nor halves it.
int64_t find_cut(const Stream& stream, double share, int64_t length) {
  const auto share_tokens =
      static_cast<int64_t>(std::ceil(share * static_cast<double>(stream.size())));
  const int64_t wanted = share > 0 ? std::max(length, share_tokens) : 0;
  const int64_t cut = stream.size() - wanted;
  check(cut >= length, "the text has ", stream.size(),
        " tokens, too few for one training sequence of ", length, " and ", wanted,
        " tokens held out: wants ", length + wanted);
  if (wanted == 0) return cut;
  const auto same = [&](int64_t i) { return stream.document[i] == stream.document[cut]; };
  int64_t begin = cut, end = cut;
  while (begin > 0 && same(begin - 1)) --begin;
  while (end < stream.size() && same(end)) ++end;
  if (stream.size() - begin <= 2 * wanted && begin >= length) return begin;
  if (stream.size() - end >= std::max(length, wanted / 2)) return end;
  return cut;
}

PackedData pack(const Stream& stream, int64_t begin, int64_t end, int64_t length) {
  const int64_t rows = (end - begin) / length;
  const auto cut = [&](const std::vector<int64_t>& values) {
    return torch::from_blob(const_cast<int64_t*>(values.data()) + begin, {rows, length},
                            torch::kInt64)
        .clone();
  };
  return {cut(stream.tokens), cut(stream.document)};
}

/// FNV-1a, one 64-bit value at a time.
uint64_t hash(const torch::Tensor& values, uint64_t start) {
  const int64_t* data = values.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < values.numel(); ++i)
    start = (start ^ static_cast<uint64_t>(data[i])) * 0x100000001b3ULL;
  return start;
}

void check_options(const DataOptions& options) {
  if (options.files.empty()) fail_usage("data.files names no file");
  if (options.sequence_length < 2)
    fail_usage("data.sequence_length wants at least 2, found ", options.sequence_length);
  if (!(options.held_out >= 0 && options.held_out < 1))
    fail_usage("data.held_out wants a share from 0 to below 1, found ", options.held_out);
  if (options.max_bytes < 0)
    fail_usage("data.max_bytes wants 0 or more, found ", options.max_bytes);
}

}  // namespace

Batch PackedData::at(const std::vector<int64_t>& rows) const {
  const torch::Tensor index = torch::tensor(rows, torch::kInt64);
  return {tokens.index_select(0, index), document.index_select(0, index)};
}

TextData TextData::load(const DataOptions& options, const Tokenizer& tokenizer, uint64_t seed) {
  check_options(options);
  const std::vector<std::string> documents =
      read_documents(options.files, options.text_field, options.max_bytes);
  const Stream stream = tokenize(documents, tokenizer, seed);
  const int64_t length = options.sequence_length;
  const int64_t cut = find_cut(stream, options.held_out, length);

  TextData data;
  data.train = pack(stream, 0, cut, length);
  data.held_out = pack(stream, cut, stream.size(), length);
  data.num_documents = static_cast<int64_t>(documents.size());
  data.num_tokens = stream.size();
  for (const std::string& text : documents) data.num_bytes += static_cast<int64_t>(text.size());
  data.fingerprint = 0xcbf29ce484222325ULL ^ static_cast<uint64_t>(length);
  for (const PackedData* part : {&data.train, &data.held_out})
    data.fingerprint = hash(part->document, hash(part->tokens, data.fingerprint));
  return data;
}

std::vector<int64_t> document_order(int64_t count, uint64_t seed) {
  return permutation(count, seed);
}

std::vector<int64_t> step_sequences(uint64_t seed, int64_t step, int64_t count,
                                    int64_t num_sequences) {
  check(num_sequences > 0, "there is no sequence to train on");
  std::vector<int64_t> sequences, order;
  int64_t epoch_of_order = -1;
  for (int64_t at = step * count; at < (step + 1) * count; ++at) {
    const int64_t epoch = at / num_sequences;
    if (epoch != epoch_of_order)
      order =
          permutation(num_sequences, seed + static_cast<uint64_t>(epoch) * 0xd1342543de82ef95ULL);
    epoch_of_order = epoch;
    sequences.push_back(order[at % num_sequences]);
  }
  return sequences;
}

}  // namespace nibble
