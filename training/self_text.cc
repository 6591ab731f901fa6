#include "training/self_text.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "io/atomic_file.h"
#include "model/generate.h"
#include "model/tokenizer.h"
#include "quant/fake/torch_device.h"
#include "training/learner.h"
#include "training/self_prompts.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

/// Of chat data: how many tokens may be sampled for one that is kept, answers that do not end left
/// out.
constexpr int64_t kMostPerKept = 8;

/// The texts so far, as rows.
class SelfText {
 public:
  SelfText(const GgufMetadata& metadata, const TrainOptions& options, const SelfTextOptions& self)
      : options_(options),
        self_(self),
        tokenizer_(Tokenizer::from_metadata(metadata)),
        prompts_(read_self_prompts(self.prompts, options.data, metadata, *tokenizer_)),
        bar_("writing text", self.tokens, "tokens") {}

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  bool is_chat() const { return options_.data.is_chat(); }
  /// What text `number` begins with, in turn.
  const SelfPrompt& prompt(int64_t number) const { return prompts_[number % prompts_.size()]; }
  /// How many tokens more it may have.
  int64_t most_tokens(int64_t number) const {
    return options_.data.sequence_length - static_cast<int64_t>(prompt(number).ids.size());
  }
  /// Apart for each.
  uint64_t seed(int64_t number) const {
    return options_.seed * 0x9e3779b97f4a7c15ULL + static_cast<uint64_t>(number);
  }

  /// How the next text went on. Returns whether another one is wanted.
  bool add(const std::vector<int32_t>& own) {
    const SelfPrompt& begin = prompt(num_texts_);
    std::vector<int32_t> ids = begin.ids;
    ids.insert(ids.end(), own.begin(), own.end());
    // Decoded with the prompt: a sentencepiece text's first space is not part of it.
    const std::string text = tokenizer_->decode(ids);
    const auto size = static_cast<int64_t>(ids.size());
    if (!is_chat()) return add_text(text, size);
    return add_answer(
        {{"role", "assistant"}, {"content", text.substr(tokenizer_->decode(begin.ids).size())}},
        size < options_.data.sequence_length, size);
  }
  bool add(const Completion& completion) {
    const SelfPrompt& begin = prompt(num_texts_);
    const std::string& own =
        is_chat() ? completion.message["content"].get_ref<const std::string&>() : completion.text;
    const auto size =
        static_cast<int64_t>(begin.ids.size() + tokenizer_->encode(own, false, false).size());
    return is_chat() ? add_answer(completion.message, completion.has_end, size)
                     : add_text(begin.text + own, size);
  }

  void write(const std::string& path) {
    bar_.finish();
    write_file(path, rows_);
    note(path, ": ", num_rows_, " texts that the model wrote at temperature ", self_.temperature,
         left_out_ > 0 ? concat("; ", left_out_, " answers that did not end are left out") : "");
  }

 private:
  bool add_text(const std::string& text, int64_t size) {
    return add_row({{options_.data.text_field, text}}, size);
  }
  /// The end of an answer is learned, so it must be one.
  bool add_answer(Json message, bool has_end, int64_t size) {
    sampled_ += size;
    if (has_end) {
      Json row = prompt(num_texts_).row;
      row["messages"].push_back(std::move(message));
      return add_row(row, size);
    }
    ++left_out_;
    ++num_texts_;
    check(sampled_ <= kMostPerKept * self_.tokens, "of ", num_texts_, " answers only ", num_rows_,
          " end within data.sequence_length, ", options_.data.sequence_length, " tokens");
    return true;
  }
  bool add_row(const Json& row, int64_t size) {
    // A token can be a part of a character.
    rows_ += row.dump(-1, ' ', false, Json::error_handler_t::replace) + '\n';
    ++num_rows_;
    ++num_texts_;
    kept_tokens_ += size;
    bar_.update(std::min(kept_tokens_, self_.tokens));
    return kept_tokens_ < self_.tokens;
  }

  const TrainOptions& options_;
  const SelfTextOptions& self_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<SelfPrompt> prompts_;
  Progress bar_;
  std::string rows_;
  int64_t num_texts_ = 0, num_rows_ = 0, left_out_ = 0;
  int64_t kept_tokens_ = 0, sampled_ = 0;  // prompts included
};

}  // namespace

void write_self_text(Model& model, const GgufMetadata& metadata, const TrainOptions& options,
                     const SelfTextOptions& self, const std::string& path) {
  SelfText texts(metadata, options, self);
  const auto task = [&](int64_t number) {
    return GenerateTask{texts.prompt(number).ids,
                        {texts.most_tokens(number), self.temperature, texts.seed(number)}};
  };
  generate_many(model, texts.tokenizer(), self.at_once, task,
                [&](const std::vector<int32_t>& own) { return texts.add(own); });
  texts.write(path);
}

void write_self_text(const GgufMetadata& metadata, const TrainOptions& options,
                     const SelfTextOptions& self, const std::string& path) {
  SelfText texts(metadata, options, self);
  std::atomic<bool> stop = false;
  std::deque<std::future<Completion>> asked;  // of which the first is the next to be added
  const auto ask = [&](int64_t number) {
    return std::async(std::launch::async, [&, number] {
      return complete(self.endpoint, texts.prompt(number),
                      {texts.most_tokens(number), self.temperature, texts.seed(number)}, stop);
    });
  };
  try {
    int64_t number = 0;
    for (bool wants_more = true; wants_more; asked.pop_front()) {
      while (static_cast<int64_t>(asked.size()) < self.at_once) asked.push_back(ask(number++));
      wants_more = texts.add(asked.front().get());
    }
  } catch (...) {
    stop = true;
    throw;
  }
  stop = true;
  texts.write(path);
}

void make_self_text(TrainOptions& options, const SelfTextOptions& self, const GgufFile& source,
                    const std::string& run_dir, bool keep) {
  const auto entry = std::find(options.data.files.begin(), options.data.files.end(), kSelf);
  if (entry == options.data.files.end()) return;
  *entry = self_text_path(run_dir);
  if (keep && std::filesystem::exists(*entry)) return;
  create_folders(run_dir);
  if (!self.endpoint.url.empty()) {
    write_self_text(source.metadata(), options, self, *entry);
    return;
  }
  const torch::Device device = torch_device(options.device);
  const std::unique_ptr<Model> model = load_model(source, device);
  model->set_compute_dtype(parse_compute_dtype(options.dtype, device));
  model->keep_matrices_cast();
  write_self_text(*model, source.metadata(), options, self, *entry);
}

}  // namespace nibble
