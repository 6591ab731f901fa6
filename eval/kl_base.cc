#include "eval/kl_base.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/threads.h"

namespace nibble {
namespace {

constexpr char kMagic[] = {'_', 'l', 'o', 'g', 'i', 't', 's', '_'};
constexpr int64_t kHeaderBytes = sizeof kMagic + 3 * sizeof(int32_t);

std::span<const std::byte> bytes_of(const auto& values) { return std::as_bytes(std::span(values)); }

int32_t read_int(std::span<const std::byte> bytes, int64_t offset) {
  int32_t value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

/// The header's numbers, checked against the size of the file before anything is allocated.
KlBaseText read_header(std::span<const std::byte> bytes) {
  const int64_t size = bytes.size();
  check(size >= kHeaderBytes && std::memcmp(bytes.data(), kMagic, sizeof kMagic) == 0,
        "not a file of base log-probabilities: it does not start with '_logits_'");
  KlBaseText text;
  text.ctx = read_int(bytes, 8);
  text.vocab = read_int(bytes, 12);
  const int64_t chunks = read_int(bytes, 16);
  check(text.ctx >= 4 && text.vocab > 0 && chunks > 0, "offset 8: context ", text.ctx,
        ", vocabulary ", text.vocab, " and chunks ", chunks, " cannot be");
  const int64_t chunk_bytes =
      4 * text.ctx + text.rows_per_chunk() * base_row_size(text.vocab) * int64_t{sizeof(uint16_t)};
  check((size - kHeaderBytes) / chunk_bytes == chunks && (size - kHeaderBytes) % chunk_bytes == 0,
        "has ", size, " bytes, its header wants ", kHeaderBytes, " + ", chunks, " x ", chunk_bytes);
  text.chunks.assign(chunks, std::vector<int32_t>(text.ctx));
  const std::byte* from = bytes.data() + kHeaderBytes;
  for (std::vector<int32_t>& chunk : text.chunks) {
    std::memcpy(chunk.data(), from, 4 * text.ctx);
    from += 4 * text.ctx;
    for (const int32_t token : chunk)
      check(token >= 0 && token < text.vocab, "holds token ", token, ", its vocabulary is ",
            text.vocab);
  }
  return text;
}

/// Element at `fraction` of a sorted range, interpolated; in float32, as llama-perplexity does it.
float percentile(const std::vector<float>& sorted, float fraction) {
  const float place = fraction * (sorted.size() - 1);
  const size_t below = static_cast<size_t>(place);
  const float share = place - below;
  return (1 - share) * sorted[below] + share * sorted[std::min(below + 1, sorted.size() - 1)];
}

/// `get` of every token.
template <class Get>
std::vector<double> collect(const std::vector<TokenDivergence>& tokens, Get get) {
  std::vector<double> values;
  values.reserve(tokens.size());
  for (const TokenDivergence& token : tokens) values.push_back(get(token));
  return values;
}

Figure exponential(const Figure& log) {
  const double value = std::exp(log.value);
  return {value, value * log.err};
}

}  // namespace

std::vector<uint16_t> encode_base(const torch::Tensor& logits) {
  const int64_t vocab = logits.size(1), size = base_row_size(vocab);
  std::vector<uint16_t> rows(logits.size(0) * size);
  const float* from = logits.data_ptr<float>();
  parallel_for(logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      encode_base_row(from + row * vocab, vocab, rows.data() + row * size);
  });
  return rows;
}

KlBaseWriter::KlBaseWriter(const std::string& path, const KlBaseText& text)
    : file_(path), chunks_left_(text.chunks.size()) {
  const int32_t numbers[] = {static_cast<int32_t>(text.ctx), static_cast<int32_t>(text.vocab),
                             static_cast<int32_t>(text.chunks.size())};
  file_.write(std::string_view(kMagic, sizeof kMagic));
  file_.write(bytes_of(numbers));
  for (const std::vector<int32_t>& chunk : text.chunks) file_.write(bytes_of(chunk));
}

void KlBaseWriter::write(const torch::Tensor& logits) {
  file_.write(bytes_of(encode_base(logits)));
  --chunks_left_;
}

void KlBaseWriter::finish() {
  check(chunks_left_ == 0, "base file lacks ", chunks_left_, " chunks");
  file_.commit();
}

KlBase KlBase::open(const std::string& path) {
  return with_frame(path, [&] {
    MappedFile file(path);
    KlBase base(read_header(file.bytes()));
    base.rows_offset_ = kHeaderBytes + 4 * base.text_.ctx * base.text_.chunks.size();
    base.file_ = std::move(file);
    return base;
  });
}

std::span<const uint16_t> KlBase::chunk(int64_t index) const {
  if (!file_) return memory_.at(index);
  const size_t count = text_.rows_per_chunk() * base_row_size(text_.vocab);
  // The rows start at a multiple of 4 bytes in a page-aligned map.
  const auto* rows = reinterpret_cast<const uint16_t*>(file_->bytes().data() + rows_offset_);
  return {rows + index * count, count};
}

std::vector<TokenDivergence> diverge(const torch::Tensor& logits, std::span<const uint16_t> base,
                                     const std::vector<int32_t>& next_tokens) {
  const int64_t vocab = logits.size(1), size = base_row_size(vocab);
  std::vector<TokenDivergence> tokens(logits.size(0));
  const float* from = logits.data_ptr<float>();
  parallel_for(logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      tokens[row] =
          token_divergence(from + row * vocab, base.data() + row * size, vocab, next_tokens[row]);
  });
  return tokens;
}

Figure mean_figure(std::span<const double> values) {
  const double count = values.size();
  if (values.size() < 2) return {values.empty() ? 0.0 : values[0], 0.0};
  double sum = 0, squares = 0;
  for (const double value : values) {
    sum += value;
    squares += value * value;
  }
  const double mean = sum / count;
  return {mean, std::sqrt(std::max(0.0, squares / count - mean * mean) / (count - 1))};
}

DivergenceFigures summarize(const std::vector<TokenDivergence>& tokens) {
  const auto figure = [&](auto get) { return mean_figure(collect(tokens, get)); };
  DivergenceFigures figures;
  figures.ppl = exponential(figure([](const TokenDivergence& t) { return double{t.nll}; }));
  figures.ppl_base =
      exponential(figure([](const TokenDivergence& t) { return double{t.nll_base}; }));
  // Paired: the variance of the difference is what llama.cpp writes as var + var - 2 cov.
  figures.ln_ppl_ratio =
      figure([](const TokenDivergence& t) { return double{t.nll} - double{t.nll_base}; });
  figures.mean_kld = figure([](const TokenDivergence& t) { return double{t.kld}; });
  const Figure mean_square =
      figure([](const TokenDivergence& t) { return double{t.dp} * double{t.dp}; });
  const double rms = std::sqrt(mean_square.value);
  figures.rms_dp = {rms, rms > 0 ? 0.5 / rms * mean_square.err : 0.0};
  figures.same_top = figure([](const TokenDivergence& t) { return t.same_top ? 1.0 : 0.0; });

  std::vector<float> klds;
  for (const TokenDivergence& token : tokens) klds.push_back(token.kld);
  std::sort(klds.begin(), klds.end());
  if (klds.empty()) return figures;
  const size_t half = klds.size() / 2;
  figures.median_kld = klds.size() % 2 == 0 ? 0.5f * (klds[half] + klds[half - 1]) : klds[half];
  figures.p999_kld = percentile(klds, 0.999f);
  figures.max_kld = klds.back();
  return figures;
}

}  // namespace nibble
