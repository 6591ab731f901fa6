#include "model/generate.h"

#include "base/error.h"

namespace nibble {
namespace {

/// The next token from logits [V]: the likeliest one, or one drawn at the temperature.
int32_t choose(const torch::Tensor& logits, double temperature, const at::Generator& generator) {
  if (temperature == 0) return static_cast<int32_t>(logits.argmax().item<int64_t>());
  const torch::Tensor probabilities = torch::softmax(logits.to(torch::kFloat64) / temperature, 0);
  return static_cast<int32_t>(
      torch::multinomial(probabilities, 1, /*replacement=*/false, generator).item<int64_t>());
}

}  // namespace

std::vector<int32_t> generate(Model& model, const Tokenizer& tokenizer,
                              const std::vector<int32_t>& prompt, const GenerateOptions& options,
                              const std::function<void(int32_t)>& on_token) {
  check(!prompt.empty(), "the prompt has no token to go on from");
  if (!(options.temperature >= 0))
    fail_usage("temperature wants 0 (greedy) or more, found ", options.temperature);
  const torch::NoGradGuard no_grad;
  at::Generator generator = at::detail::createCPUGenerator(options.seed);
  const std::unique_ptr<KvCache> cache = model.new_cache();

  std::vector<int32_t> ids;
  std::vector<int64_t> next(prompt.begin(), prompt.end());
  while (static_cast<int64_t>(ids.size()) < options.max_tokens) {
    const torch::Tensor hidden = model.hidden_next(torch::tensor(next, torch::kInt64), *cache);
    const torch::Tensor logits = model.logits_of(hidden.narrow(0, hidden.size(0) - 1, 1))[0].cpu();
    const int32_t id = choose(logits, options.temperature, generator);
    if (tokenizer.is_end_of_generation(id)) break;
    ids.push_back(id);
    if (on_token) on_token(id);
    next = {id};
  }
  return ids;
}

}  // namespace nibble
