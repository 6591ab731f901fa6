#include "eval/perplexity.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "base/progress.h"
#include "base/threads.h"
#include "eval/kl_base.h"
#include "eval/softmax_rows.h"

namespace nibble {
namespace {

// Chunks go through the model together up to this many tokens: enough for the matmuls' full speed,
// while the activations still fit in the last-level cache's reach.
constexpr int64_t kTokensPerForward = 2048;

torch::Tensor tokens_tensor(const std::vector<std::vector<int32_t>>& chunks, size_t begin,
                            size_t end) {
  const int64_t length = chunks[begin].size();
  torch::Tensor tokens = torch::empty({static_cast<int64_t>(end - begin), length}, torch::kInt64);
  int64_t* out = tokens.data_ptr<int64_t>();
  for (size_t i = begin; i < end; ++i) out = std::copy(chunks[i].begin(), chunks[i].end(), out);
  return tokens;
}

/// -ln p of the token after each row of logits [R, V].
std::vector<double> row_losses(const torch::Tensor& logits, const std::vector<int32_t>& next) {
  const int64_t vocab = logits.size(1);
  const float* from = logits.data_ptr<float>();
  std::vector<double> losses(logits.size(0));
  parallel_for(logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      losses[row] = negative_log_likelihood(from + row * vocab, vocab, next[row]);
  });
  return losses;
}

}  // namespace

std::vector<std::vector<int32_t>> cut_chunks(const Tokenizer& tokenizer, const std::string& text,
                                             const PerplexityOptions& options) {
  check(options.ctx >= 4, "a context of ", options.ctx,
        " tokens is too short to measure; 4 are needed");
  check(options.chunks != 0, "0 chunks leave nothing to measure");
  const std::vector<int32_t> tokens =
      tokenizer.encode(text, /*add_special=*/true, /*parse_special=*/false);
  const int64_t found = tokens.size();
  check(found >= 2 * options.ctx, "the text has ", found, " tokens; a context of ", options.ctx,
        " needs at least ", 2 * options.ctx);
  const int64_t most = found / options.ctx;
  const int64_t count = options.chunks < 0 ? most : std::min(options.chunks, most);
  std::vector<std::vector<int32_t>> chunks;
  for (int64_t i = 0; i < count; ++i)
    chunks.emplace_back(tokens.begin() + i * options.ctx, tokens.begin() + (i + 1) * options.ctx);
  return chunks;
}

std::vector<std::vector<int32_t>> begin_with_bos(std::vector<std::vector<int32_t>> chunks,
                                                 const Tokenizer& tokenizer) {
  if (tokenizer.add_bos())
    for (std::vector<int32_t>& chunk : chunks) chunk.front() = tokenizer.bos();
  return chunks;
}

std::vector<std::vector<int32_t>> perplexity_chunks(const Tokenizer& tokenizer,
                                                    const std::string& text,
                                                    const PerplexityOptions& options) {
  return begin_with_bos(cut_chunks(tokenizer, text, options), tokenizer);
}

void run_chunks(Model& model, const std::vector<std::vector<int32_t>>& chunks,
                const std::function<void(int64_t first, const torch::Tensor& hidden)>& body) {
  const torch::NoGradGuard no_grad;
  const size_t group = std::max<int64_t>(1, kTokensPerForward / std::ssize(chunks[0]));
  for (size_t begin = 0; begin < chunks.size(); begin += group) {
    const size_t end = std::min(begin + group, chunks.size());
    body(begin, model.hidden({tokens_tensor(chunks, begin, end), torch::Tensor()}));
  }
}

PerplexityResult perplexity(Model& model, const std::vector<std::vector<int32_t>>& chunks,
                            const LogitsVisitor& visit) {
  check(!chunks.empty(), "no chunks to measure");
  const auto start = std::chrono::steady_clock::now();
  const int64_t ctx = chunks[0].size(), half = ctx / 2, scored = ctx - 1 - half;
  std::vector<double> losses;
  Progress progress("perplexity", chunks.size(), "chunks");
  run_chunks(model, chunks, [&](int64_t first, const torch::Tensor& hidden) {
    const int64_t end = first + hidden.size(0);
    for (int64_t i = first; i < end; ++i) {
      const torch::Tensor logits = model.logits_of(hidden[i - first].narrow(0, half, scored)).cpu();
      const std::vector<int32_t> next(chunks[i].begin() + half + 1, chunks[i].end());
      const std::vector<double> chunk_losses = row_losses(logits, next);
      losses.insert(losses.end(), chunk_losses.begin(), chunk_losses.end());
      if (visit) visit(i, logits, next);
    }
    progress.update(end, concat("PPL ", std::exp(mean_figure(losses).value)));
  });
  const Figure nll = mean_figure(losses);
  PerplexityResult result;
  result.nll = nll.value;
  result.nll_err = nll.err;
  result.ppl = std::exp(nll.value);
  result.ppl_err = result.ppl * nll.err;
  result.tokens = losses.size();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace nibble
