// A base model's log-probabilities in llama.cpp's --kl-divergence-base form, on disk or in memory,
// and what another model's divergence from them amounts to. File (source: llama.cpp
// tools/perplexity/perplexity.cpp, little-endian): "_logits_", u32 ctx, i32 vocabulary, i32 chunks,
// i32 tokens[chunks * ctx], then chunk by chunk ctx - 1 - ctx/2 rows (eval/softmax_rows.h). The
// tokens are the text's own, before BOS takes the place of each chunk's first.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/softmax_rows.h"
#include "io/atomic_file.h"
#include "io/mapped_file.h"
#include "quant/fake/torch.h"

namespace nibble {

/// What a base was computed on.
struct KlBaseText {
  int64_t ctx = 0, vocab = 0;
  std::vector<std::vector<int32_t>> chunks;  // ctx tokens each
  int64_t rows_per_chunk() const { return ctx - 1 - ctx / 2; }
};

/// logits [R, V] float32 -> R rows of base_row_size(V) uint16s.
std::vector<uint16_t> encode_base(const torch::Tensor& logits);

/// A base file being written; it appears when finish() has seen every chunk.
class KlBaseWriter {
 public:
  KlBaseWriter(const std::string& path, const KlBaseText& text);
  /// The next chunk's scored logits, [rows_per_chunk, V] float32.
  void write(const torch::Tensor& logits);
  void finish();

 private:
  AtomicFile file_;
  int64_t chunks_left_;
};

/// A base to compare with: a mapped file, or rows kept in memory.
class KlBase {
 public:
  /// Throws Error with path and offset for a file that is none, or whose size is not what its
  /// header says.
  static KlBase open(const std::string& path);
  /// An empty base in memory, filled by append() with each chunk's encode_base() rows.
  explicit KlBase(KlBaseText text) : text_(std::move(text)) {}
  void append(std::vector<uint16_t> rows) { memory_.push_back(std::move(rows)); }

  const KlBaseText& text() const { return text_; }
  /// rows_per_chunk rows.
  std::span<const uint16_t> chunk(int64_t index) const;

 private:
  KlBaseText text_;
  std::optional<MappedFile> file_;
  size_t rows_offset_ = 0;
  std::vector<std::vector<uint16_t>> memory_;
};

/// logits [R, V] float32 against R base rows; next_tokens: the text's token after each row.
std::vector<TokenDivergence> diverge(const torch::Tensor& logits, std::span<const uint16_t> base,
                                     const std::vector<int32_t>& next_tokens);

/// A mean and its standard error over tokens, or a figure and the error that follows from one.
struct Figure {
  double value = 0, err = 0;
};

/// llama-perplexity --kl-divergence's figures, by its formulas.
struct DivergenceFigures {
  Figure ppl, ppl_base, ln_ppl_ratio, mean_kld, rms_dp, same_top;
  double median_kld = 0, p999_kld = 0, max_kld = 0;
};
DivergenceFigures summarize(const std::vector<TokenDivergence>& tokens);

/// Mean of `values` with its standard error sqrt((mean(x^2) - mean(x)^2) / (n - 1)).
Figure mean_figure(std::span<const double> values);

}  // namespace nibble
