// Generation: a text's next positions on top of what a cache keeps of those before.
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "model/attention.h"
#include "model/llama.h"

namespace nibble {
namespace {

/// Keys and values of each layer, [P, G, d] of which the first `length` rows are filled, or what
/// its gated delta net goes on from.
class LlamaCache : public KvCache {
 public:
  explicit LlamaCache(int64_t layers) : keys_(layers), values_(layers), states_(layers) {}
  int64_t length() const override { return length_; }
  void advance(int64_t tokens) { length_ += tokens; }

  /// Stores rows length() ... of a layer; returns all rows so far, new ones included.
  std::pair<torch::Tensor, torch::Tensor> append(int64_t layer, const torch::Tensor& k,
                                                 const torch::Tensor& v) {
    return {append_rows(keys_[layer], k), append_rows(values_[layer], v)};
  }
  DeltaNetState& state(int64_t layer) { return states_[layer]; }

 private:
  torch::Tensor append_rows(torch::Tensor& store, const torch::Tensor& rows) const {
    const int64_t end = length_ + rows.size(0);
    if (!store.defined() || store.size(0) < end) {
      torch::Tensor larger = torch::empty(
          {std::max<int64_t>(2 * end, 64), rows.size(1), rows.size(2)}, rows.options());
      if (length_ > 0) larger.narrow(0, 0, length_).copy_(store.narrow(0, 0, length_));
      store = larger;
    }
    store.narrow(0, length_, rows.size(0)).copy_(rows);
    return store.narrow(0, 0, end);
  }

  std::vector<torch::Tensor> keys_, values_;
  std::vector<DeltaNetState> states_;
  int64_t length_ = 0;
};

}  // namespace

std::unique_ptr<KvCache> Llama::new_cache() {
  return std::make_unique<LlamaCache>(options_.shape.num_layers);
}

Llama::Rotations Llama::rotations_next(const std::vector<NextTokens>& texts) {
  std::vector<torch::Tensor> full, windows;
  for (const NextTokens& text : texts) {
    const int64_t start = text.cache->length(), end = start + text.tokens.size(0);
    check(start == 0 || is_long(start) == is_long(end), "a text that grows beyond ",
          options_.long_from, " positions is turned otherwise from its start on: give its first ",
          options_.long_from + 1, " tokens at once, or end before");
    const Rotations own =
        rotations(at::arange(start, end, torch::dtype(torch::kInt64).device(device())), end);
    full.push_back(own.full);
    if (own.windows.defined()) windows.push_back(own.windows);
  }
  return {at::cat(full), windows.empty() ? torch::Tensor() : at::cat(windows)};
}

torch::Tensor Llama::attended_next(size_t layer, const torch::Tensor& x,
                                   const std::vector<NextTokens>& texts,
                                   const Rotations& all) const {
  const Heads fresh = heads(layers_[layer], x, rotation_of(layer, all));
  std::vector<torch::Tensor> parts;
  int64_t first = 0;
  for (const NextTokens& text : texts) {
    const int64_t count = text.tokens.size(0);
    const auto own = [&](const torch::Tensor& rows) { return rows.narrow(0, first, count); };
    const auto [k, v] =
        dynamic_cast<LlamaCache&>(*text.cache).append(layer, own(fresh.k), own(fresh.v));
    parts.push_back(attend_cached(own(fresh.q), k, v, dtype_, rule_of(layer)));
    first += count;
  }
  return fresh.gated(at::cat(parts));
}

torch::Tensor Llama::delta_net_next(size_t layer, const torch::Tensor& x,
                                    const std::vector<NextTokens>& texts,
                                    const std::vector<DocumentChunks>& chunks) const {
  std::vector<torch::Tensor> parts;
  int64_t first = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    const int64_t count = texts[i].tokens.size(0);
    parts.push_back(delta_net(layers_[layer], x.narrow(0, first, count), chunks[i],
                              &dynamic_cast<LlamaCache&>(*texts[i].cache).state(layer)));
    first += count;
  }
  return at::cat(parts);
}

std::vector<DocumentChunks> Llama::chunks_next(const std::vector<NextTokens>& texts) const {
  std::vector<DocumentChunks> chunks;
  if (options_.delta.layers.empty()) return chunks;
  for (const NextTokens& text : texts) {
    const int64_t start = text.cache->length(), count = text.tokens.size(0);
    chunks.push_back(chunk_documents(
        {at::arange(start, start + count, torch::kInt64), {count}, count}, device()));
  }
  return chunks;
}

torch::Tensor Llama::hidden_next(const std::vector<NextTokens>& texts) {
  const torch::NoGradGuard no_grad;
  const Rotations all = rotations_next(texts);
  const std::vector<DocumentChunks> chunks = chunks_next(texts);
  std::vector<torch::Tensor> tokens;
  for (const NextTokens& text : texts) tokens.push_back(text.tokens.to(device()));
  torch::Tensor x = embedded(at::cat(tokens));
  for (size_t i = 0; i < layers_.size(); ++i) {
    const torch::Tensor attended =
        has_delta_net(i) ? delta_net_next(i, x, texts, chunks) : attended_next(i, x, texts, all);
    x = finish_block(layers_[i], x, attended, nullptr);
  }
  for (const NextTokens& text : texts)
    dynamic_cast<LlamaCache&>(*text.cache).advance(text.tokens.size(0));
  return finish(x);
}

}  // namespace nibble
