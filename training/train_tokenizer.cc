#include "training/train_tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "training/data.h"
#include "training/text_files.h"

namespace nibble {
namespace {

/// Enough for the counts that thousands of merges are chosen by; sentencepiece needs seconds for
/// it.
constexpr int64_t kSampleBytes = 4 << 20;

/// The lines of several texts.
class Lines final : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::vector<std::string>& texts) : texts_(texts) { Next(); }

  bool done() const override { return done_; }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }
  void Next() override {
    while (text_ < texts_.size() && at_ >= texts_[text_].size()) {
      ++text_;
      at_ = 0;
    }
    done_ = text_ == texts_.size();
    if (done_) return;
    const std::string_view rest = std::string_view(texts_[text_]).substr(at_);
    line_ = rest.substr(0, rest.find('\n'));
    at_ += line_.size() + 1;
  }

 private:
  const std::vector<std::string>& texts_;
  std::string line_;
  size_t text_ = 0, at_ = 0;  // where the next line begins
  bool done_ = false;
};

int32_t token_type(const sentencepiece::SentencePieceProcessor& model, int id) {
  if (model.IsUnknown(id)) return 2;
  if (model.IsControl(id)) return 3;
  if (model.IsUnused(id)) return 5;
  return model.IsByte(id) ? 6 : 1;
}

}  // namespace

std::vector<std::string> tokenizer_sample(const DataOptions& options, uint64_t seed) {
  std::vector<std::string> documents =
      read_documents(options.files, options.text_field, options.max_bytes);
  int64_t total = 0;
  for (const std::string& text : documents) total += static_cast<int64_t>(text.size());
  // Up to twice the wanted share is held out (training/data.h); half of the rest, since shares are
  // counted in tokens there and in bytes here.
  const double share = std::max(0.1, (1 - 2 * options.held_out) / 2);
  int64_t left = std::min(kSampleBytes, static_cast<int64_t>(share * static_cast<double>(total)));
  std::vector<std::string> sample;
  for (const int64_t i : document_order(static_cast<int64_t>(documents.size()), seed)) {
    std::string& text = documents[i];
    const auto size = static_cast<int64_t>(text.size());
    if (size > left) text.resize(text.rfind('\n', left) + 1);  // whole lines
    if (!text.empty()) sample.push_back(std::move(text));
    if (size >= left) break;
    left -= size;
  }
  return sample;
}

std::string train_tokenizer(const std::vector<std::string>& texts, int64_t vocab_size) {
  if (vocab_size < kMinVocabSize)
    fail_usage("a vocabulary of ", vocab_size, " tokens: wants at least ", kMinVocabSize);
  Lines lines(texts);
  std::string model;
  const std::unordered_map<std::string, std::string> settings = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(vocab_size)},
      {"byte_fallback", "true"},
      {"character_coverage", "0.99995"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"split_digits", "true"},
      {"allow_whitespace_only_pieces", "true"},
      {"num_threads", "1"},  // the model file names it, and must not depend on the machine
      {"minloglevel", "2"},  // errors only
  };
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &lines, &model);
  check(status.ok(), "no tokenizer of ", vocab_size, " tokens from ", texts.size(),
        " documents: ", status.message());
  return model;
}

GgufMetadata tokenizer_metadata(const std::string& model) {
  sentencepiece::SentencePieceProcessor pieces;
  const auto status = pieces.LoadFromSerializedProto(model);
  check(status.ok(), "sentencepiece does not read this model: ", status.message());
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;
  for (int id = 0; id < pieces.GetPieceSize(); ++id) {
    tokens.push_back(pieces.IdToPiece(id));
    scores.push_back(pieces.GetScore(id));
    types.push_back(token_type(pieces, id));
  }
  GgufMetadata metadata;
  const auto set = [&](const char* name, GgufValue value) {
    metadata.set(concat("tokenizer.ggml.", name), std::move(value));
  };
  set("model", std::string("llama"));
  set("pre", std::string("default"));
  set("tokens", GgufArray{GgufValueType::kString, std::move(tokens)});
  set("scores", GgufArray{GgufValueType::kFloat32, std::move(scores)});
  set("token_type", GgufArray{GgufValueType::kInt32, std::move(types)});
  set("bos_token_id", static_cast<uint32_t>(pieces.bos_id()));
  set("eos_token_id", static_cast<uint32_t>(pieces.eos_id()));
  set("unknown_token_id", static_cast<uint32_t>(pieces.unk_id()));
  set("add_bos_token", true);
  set("add_eos_token", false);
  set("add_space_prefix", false);
  return metadata;
}

}  // namespace nibble
