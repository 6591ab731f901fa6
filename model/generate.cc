#include "model/generate.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <utility>

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

/// A text that is being continued.
class Continuation {
 public:
  Continuation(Model& model, GenerateTask task)
      : options_(task.options),
        next_(task.prompt.begin(), task.prompt.end()),
        cache_(model.new_cache()),
        generator_(at::detail::createCPUGenerator(task.options.seed)) {
    check(!task.prompt.empty(), "the prompt has no token to go on from");
    if (!(options_.temperature >= 0))
      fail_usage("temperature wants 0 (greedy) or more, found ", options_.temperature);
  }

  bool has_ended() const {
    return ended_ || static_cast<int64_t>(ids_.size()) >= options_.max_tokens;
  }
  /// What the model has to read to find the next token.
  NextTokens unread() const { return {torch::tensor(next_, torch::kInt64), cache_.get()}; }
  /// Takes the next token, of logits [V]. Returns false where it ends the text.
  bool go_on(const torch::Tensor& logits, const Tokenizer& tokenizer) {
    const int32_t id = choose(logits, options_.temperature, generator_);
    ended_ = tokenizer.is_end_of_generation(id);
    if (!ended_) ids_.push_back(id);
    next_ = {id};
    return !ended_;
  }
  const std::vector<int32_t>& ids() const { return ids_; }
  /// For one that has ended: nothing is read any more.
  void drop_cache() { cache_.reset(); }

 private:
  GenerateOptions options_;
  std::vector<int64_t> next_;
  std::unique_ptr<KvCache> cache_;
  at::Generator generator_;
  std::vector<int32_t> ids_;
  bool ended_ = false;
};

/// One token more of each text: [texts, V].
torch::Tensor next_logits(Model& model, const std::vector<Continuation*>& texts) {
  std::vector<NextTokens> unread;
  std::vector<int64_t> last;
  int64_t count = 0;
  for (const Continuation* text : texts) {
    unread.push_back(text->unread());
    count += unread.back().tokens.size(0);
    last.push_back(count - 1);
  }
  const torch::Tensor hidden = model.hidden_next(unread);
  return model
      .logits_of(hidden.index_select(0, torch::tensor(last, torch::kInt64).to(hidden.device())))
      .cpu();
}

}  // namespace

std::vector<int32_t> generate(Model& model, const Tokenizer& tokenizer,
                              const std::vector<int32_t>& prompt, const GenerateOptions& options,
                              const std::function<void(int32_t)>& on_token) {
  const torch::NoGradGuard no_grad;
  Continuation text(model, {prompt, options});
  while (!text.has_ended())
    if (text.go_on(next_logits(model, {&text})[0], tokenizer) && on_token)
      on_token(text.ids().back());
  return text.ids();
}

void generate_many(Model& model, const Tokenizer& tokenizer, int64_t at_once,
                   const std::function<GenerateTask(int64_t)>& next,
                   const std::function<bool(const std::vector<int32_t>&)>& take) {
  const torch::NoGradGuard no_grad;
  std::deque<Continuation> texts;  // of which the first is the next to be taken
  int64_t number = 0;
  while (true) {
    std::vector<Continuation*> running;
    for (Continuation& text : texts)
      if (!text.has_ended()) running.push_back(&text);
    for (; static_cast<int64_t>(running.size()) < at_once; ++number) {
      texts.emplace_back(model, next(number));
      check(!texts.back().has_ended(), "a text wants max_tokens of at least 1");
      running.push_back(&texts.back());
    }
    const torch::Tensor logits = next_logits(model, running);
    for (size_t i = 0; i < running.size(); ++i) {
      running[i]->go_on(logits[static_cast<int64_t>(i)], tokenizer);
      if (running[i]->has_ended()) running[i]->drop_cache();
    }
    for (; !texts.empty() && texts.front().has_ended(); texts.pop_front())
      if (!take(texts.front().ids())) return;
  }
}

}  // namespace nibble
