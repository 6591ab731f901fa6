#include "training/data.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/threads.h"
#include "model/chat/chat_files.h"
#include "model/chat/chat_tokens.h"
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

/// A text or a conversation, tokenized. `trained`: of each token, whether it counts in the loss;
/// empty where all do.
struct Document {
  std::vector<int32_t> ids;
  std::vector<uint8_t> trained;
  int64_t bytes = 0;
};

std::vector<Document> tokenize_texts(const DataOptions& options, const Tokenizer& tokenizer) {
  const std::vector<std::string> texts =
      read_documents(options.files, options.text_field, options.max_bytes);
  std::vector<Document> documents(texts.size());
  parallel_for(static_cast<int64_t>(texts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      documents[i].ids = tokenizer.encode(texts[i], /*add_special=*/true, /*parse_special=*/false);
      documents[i].bytes = static_cast<int64_t>(texts[i].size());
    }
  });
  return documents;
}

std::vector<Document> tokenize_chats(const DataOptions& options, const Tokenizer& tokenizer,
                                     const ChatTemplate& chat) {
  const std::vector<PlacedConversation> all = read_conversations(options.files);
  std::vector<std::vector<ChatTokens>> tokens(all.size());
  parallel_for(static_cast<int64_t>(all.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      with_frame(all[i].place,
                 [&] { tokens[i] = tokenize_chat(all[i].conversation, chat, tokenizer); });
  });
  std::vector<Document> documents;
  for (std::vector<ChatTokens>& parts : tokens)
    for (ChatTokens& part : parts) {
      const auto bytes = static_cast<int64_t>(tokenizer.byte_ends(part.ids).back());
      if (!options.answers_only) part.trained.clear();
      documents.push_back({std::move(part.ids), std::move(part.trained), bytes});
    }
  return documents;
}

/// Documents laid end to end: a token, the number of the document it is from, and where not all
/// count in the loss, whether it does.
struct Stream {
  std::vector<int64_t> tokens, document;
  std::vector<uint8_t> trained;
  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
};

Stream lay_end_to_end(const std::vector<Document>& documents, uint64_t seed) {
  Stream stream;
  for (int64_t i : document_order(static_cast<int64_t>(documents.size()), seed)) {
    const Document& next = documents[i];
    stream.tokens.insert(stream.tokens.end(), next.ids.begin(), next.ids.end());
    stream.document.insert(stream.document.end(), next.ids.size(), i);
    stream.trained.insert(stream.trained.end(), next.trained.begin(), next.trained.end());
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

template <class T>
torch::Tensor cut_rows(const std::vector<T>& values, int64_t begin, int64_t rows, int64_t length,
                       torch::Dtype dtype) {
  return torch::from_blob(const_cast<T*>(values.data()) + begin, {rows, length}, dtype).clone();
}

/// Sequences in which no token counts in the loss are left out.
PackedData pack(const Stream& stream, int64_t begin, int64_t end, int64_t length) {
  const int64_t rows = (end - begin) / length;
  PackedData data = {cut_rows(stream.tokens, begin, rows, length, torch::kInt64),
                     cut_rows(stream.document, begin, rows, length, torch::kInt64),
                     {}};
  if (stream.trained.empty()) return data;
  data.trained = cut_rows(stream.trained, begin, rows, length, torch::kBool);
  const torch::Tensor kept = next_token_targets({data.tokens, data.document, data.trained})
                                 .reshape({rows, length})
                                 .ge(0)
                                 .any(1)
                                 .nonzero()
                                 .flatten();
  return {data.tokens.index_select(0, kept), data.document.index_select(0, kept),
          data.trained.index_select(0, kept)};
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

TextData load_group(const DataOptions& options, const Tokenizer& tokenizer, uint64_t seed,
                    const ChatTemplate* chat) {
  const std::vector<Document> documents = options.is_chat()
                                              ? tokenize_chats(options, tokenizer, *chat)
                                              : tokenize_texts(options, tokenizer);
  const Stream stream = lay_end_to_end(documents, seed);
  const int64_t length = options.sequence_length;
  const int64_t cut = find_cut(stream, options.held_out, length);

  TextData data;
  data.train = pack(stream, 0, cut, length);
  data.held_out = pack(stream, cut, stream.size(), length);
  data.num_documents = static_cast<int64_t>(documents.size());
  data.num_tokens = stream.size();
  for (const Document& document : documents) data.num_bytes += document.bytes;
  data.fingerprint = 0xcbf29ce484222325ULL ^ static_cast<uint64_t>(length);
  for (const PackedData* part : {&data.train, &data.held_out}) {
    data.fingerprint = hash(part->document, hash(part->tokens, data.fingerprint));
    if (part->trained.defined())
      data.fingerprint = hash(part->trained.to(torch::kInt64), data.fingerprint);
  }
  check(data.train.num_sequences() > 0, "no answer of an assistant is left to train on");
  return data;
}

PackedData joined(const std::vector<PackedData>& parts, const std::vector<double>& weights) {
  PackedData all;
  std::vector<torch::Tensor> tokens, document, trained;
  int64_t first = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    tokens.push_back(parts[i].tokens);
    document.push_back(parts[i].document);
    if (parts[i].trained.defined()) trained.push_back(parts[i].trained);
    all.groups.push_back({first, parts[i].num_sequences(), weights[i]});
    first += parts[i].num_sequences();
  }
  all.tokens = torch::cat(tokens);
  all.document = torch::cat(document);
  if (!trained.empty()) all.trained = torch::cat(trained);
  return all;
}

TextData joined(const std::vector<TextData>& parts, const std::vector<double>& weights) {
  TextData all;
  std::vector<PackedData> train, held_out;
  for (size_t i = 0; i < parts.size(); ++i) {
    train.push_back(parts[i].train);
    held_out.push_back(parts[i].held_out);
    all.num_documents += parts[i].num_documents;
    all.num_tokens += parts[i].num_tokens;
    all.num_bytes += parts[i].num_bytes;
    all.fingerprint = (all.fingerprint ^ parts[i].fingerprint) * 0x100000001b3ULL ^
                      static_cast<uint64_t>(weights[i] * 1e6);
  }
  all.train = joined(train, weights);
  all.held_out = joined(held_out, weights);
  return all;
}

}  // namespace

torch::Tensor next_token_targets(const Batch& batch) {
  const torch::Tensor& tokens = batch.tokens;
  const int64_t length = tokens.size(1);
  torch::Tensor targets = torch::full_like(tokens, -1);
  if (length < 2) return targets.flatten();
  const torch::Tensor next = tokens.narrow(1, 1, length - 1);
  torch::Tensor into = targets.narrow(1, 0, length - 1);
  into.copy_(next);
  if (batch.document.defined())
    into.masked_fill_(
        batch.document.narrow(1, 1, length - 1).ne(batch.document.narrow(1, 0, length - 1)), -1);
  if (batch.trained.defined())
    into.masked_fill_(batch.trained.narrow(1, 1, length - 1).logical_not(), -1);
  return targets.flatten();
}

Batch PackedData::at(const std::vector<int64_t>& rows) const {
  const torch::Tensor index = torch::tensor(rows, torch::kInt64);
  return {tokens.index_select(0, index), document.index_select(0, index),
          trained.defined() ? trained.index_select(0, index) : trained};
}

TextData TextData::load(const DataOptions& options, const GgufMetadata& metadata, uint64_t seed) {
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::from_metadata(metadata);
  if (!options.is_chat()) return load(options, *tokenizer, seed);
  const ChatTemplate chat = ChatTemplate::from_metadata(metadata, *tokenizer);
  return load(options, *tokenizer, seed, &chat);
}

TextData TextData::load(const DataOptions& options, const Tokenizer& tokenizer, uint64_t seed,
                        const ChatTemplate* chat) {
  check_options(options);
  check(!options.is_chat() || chat, "data.format is chat, and there is no chat template");
  if (options.weights.empty()) return load_group(options, tokenizer, seed, chat);
  std::vector<TextData> parts;
  for (const std::string& pattern : options.files) {
    DataOptions of_one = options;
    of_one.files = {pattern};
    parts.push_back(with_frame(
        pattern, [&] { return load_group(of_one, tokenizer, seed + parts.size(), chat); }));
  }
  return joined(parts, options.weights);
}

std::vector<int64_t> document_order(int64_t count, uint64_t seed) {
  return permutation(count, seed);
}

namespace {

/// The sequences of one group in the order in which training draws them.
class GroupOrder {
 public:
  GroupOrder(uint64_t seed, SequenceGroup group) : seed_(seed), group_(group) {}

  int64_t draw(int64_t index) {
    const int64_t epoch = index / group_.count;
    if (epoch != epoch_)
      order_ =
          permutation(group_.count, seed_ + static_cast<uint64_t>(epoch) * 0xd1342543de82ef95ULL);
    epoch_ = epoch;
    return group_.first + order_[index % group_.count];
  }

 private:
  uint64_t seed_;
  SequenceGroup group_;
  int64_t epoch_ = -1;
  std::vector<int64_t> order_;
};

/// Which group the draw `at` is of, and how many of that group came before it: each group in turn
/// takes its share of what those before it leave, evenly spread.
std::pair<size_t, int64_t> group_of_draw(int64_t at, const std::vector<SequenceGroup>& groups) {
  double left = 0;
  for (const SequenceGroup& group : groups) left += group.weight;
  for (size_t g = 0; g + 1 < groups.size(); ++g) {
    const double share = groups[g].weight / left;
    const auto taken = [&](int64_t draws) {
      return static_cast<int64_t>(std::floor(static_cast<double>(draws) * share + 0.5));
    };
    const int64_t before = taken(at);
    if (taken(at + 1) > before) return {g, before};
    at -= before;
    left -= groups[g].weight;
  }
  return {groups.size() - 1, at};
}

std::vector<int64_t> draw_sequences(uint64_t seed, int64_t step, int64_t count,
                                    const std::vector<SequenceGroup>& groups) {
  std::vector<GroupOrder> orders;
  for (size_t g = 0; g < groups.size(); ++g) {
    check(groups[g].count > 0, "there is no sequence to train on");
    orders.emplace_back(seed + g * 0x9e3779b97f4a7c15ULL, groups[g]);
  }
  std::vector<int64_t> sequences;
  for (int64_t at = step * count; at < (step + 1) * count; ++at) {
    const auto [group, index] = group_of_draw(at, groups);
    sequences.push_back(orders[group].draw(index));
  }
  return sequences;
}

}  // namespace

std::vector<int64_t> step_sequences(uint64_t seed, int64_t step, int64_t count,
                                    int64_t num_sequences) {
  return draw_sequences(seed, step, count, {{0, num_sequences, 1}});
}

std::vector<int64_t> step_sequences(uint64_t seed, int64_t step, int64_t count,
                                    const PackedData& data) {
  if (data.groups.empty()) return step_sequences(seed, step, count, data.num_sequences());
  return draw_sequences(seed, step, count, data.groups);
}

std::vector<int64_t> sequences_of_draws(uint64_t seed, int64_t draws, const PackedData& data) {
  const int64_t all = data.num_sequences();
  std::vector<bool> drawn(all);
  int64_t seen = 0;
  // As many at a time as there are: one epoch, where there are no groups.
  for (int64_t first = 0; first < draws && seen < all; first += all) {
    std::vector<int64_t> epoch = step_sequences(seed, first / all, all, data);
    epoch.resize(std::min(all, draws - first));
    for (const int64_t row : epoch) {
      seen += !drawn[row];
      drawn[row] = true;
    }
  }
  std::vector<int64_t> sequences;
  for (int64_t row = 0; row < all; ++row)
    if (drawn[row]) sequences.push_back(row);
  return sequences;
}

std::vector<int64_t> held_out_sequences(const PackedData& held_out, uint64_t seed, int64_t most) {
  const int64_t there = held_out.num_sequences(), wanted = std::min(there, most);
  if (!held_out.groups.empty() && there > 0) return step_sequences(seed, 0, wanted, held_out);
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < wanted; ++row) rows.push_back(row * there / wanted);
  return rows;
}

std::vector<std::vector<int64_t>> in_pieces(const std::vector<int64_t>& rows, int64_t size) {
  std::vector<std::vector<int64_t>> pieces;
  for (auto at = rows.begin(); at != rows.end();) {
    const auto end = at + std::min<std::ptrdiff_t>(size, rows.end() - at);
    pieces.emplace_back(at, end);
    at = end;
  }
  return pieces;
}

}  // namespace nibble
