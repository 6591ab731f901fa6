#include "training/self_text.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "io/atomic_file.h"
#include "io/input_files.h"
#include "model/chat/chat_template.h"
#include "model/generate.h"
#include "model/tokenizer.h"
#include "quant/fake/torch_device.h"
#include "training/learner.h"
#include "training/text_files.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

/// Of chat data: how many tokens may be sampled for one that is kept, answers that do not end left
/// out.
constexpr int64_t kMostPerKept = 8;

/// How a text begins.
struct Prompt {
  std::vector<int32_t> ids;
  Json row;  // of chat data, what the answer is added to
};

std::vector<int32_t> first_token(const Tokenizer& tokenizer) {
  const int32_t id = tokenizer.bos() >= 0 ? tokenizer.bos() : tokenizer.eos();
  check(id >= 0, "the model has no token that begins a text: name self.prompts");
  return {id};
}

/// Each line of a text file, or each row of a .jsonl file.
std::vector<Prompt> text_prompts(const std::string& path, const std::string& text_field,
                                 const Tokenizer& tokenizer) {
  std::vector<std::string> texts;
  if (path.ends_with(".jsonl")) {
    texts = read_documents({path}, text_field, 0);
  } else {
    for (const std::string& document : read_documents({path}, "", 0))
      for (size_t begin = 0, end = 0; begin < document.size(); begin = end + 1) {
        end = std::min(document.find('\n', begin), document.size());
        if (end > begin) texts.push_back(document.substr(begin, end - begin));
      }
  }
  std::vector<Prompt> prompts;
  for (const std::string& text : texts) {
    std::vector<int32_t> ids = tokenizer.encode(text, /*add_special=*/true, false);
    // An EOS that the tokenizer adds would end the text.
    while (ids.size() > 1 && tokenizer.is_end_of_generation(ids.back())) ids.pop_back();
    prompts.push_back({std::move(ids), {}});
  }
  return prompts;
}

/// Each row's messages up to its last that is not the assistant's.
std::vector<Prompt> chat_prompts(const std::string& path, const GgufMetadata& metadata,
                                 const Tokenizer& tokenizer) {
  const ChatTemplate chat = ChatTemplate::from_metadata(metadata, tokenizer);
  std::vector<Prompt> prompts;
  for_each_row(read_file(path), [&](const Json& row, int64_t) {
    check(row.is_object() && row.contains("messages") && row["messages"].is_array(),
          "wants an object with a list of messages");
    Json messages = row["messages"];
    while (!messages.empty() && messages.back().is_object() &&
           messages.back().value("role", Json()) == "assistant")
      messages.erase(messages.size() - 1);
    check(!messages.empty(), "has no message that an assistant could answer");
    const Json tools = row.contains("tools") ? row["tools"] : Json();
    Json kept = {{"messages", messages}};
    if (!tools.is_null()) kept["tools"] = tools;
    prompts.push_back(
        {chat.encode(chat.render({std::move(messages), tools, true}), tokenizer), std::move(kept)});
  });
  return prompts;
}

class Writer {
 public:
  Writer(Model& model, const GgufMetadata& metadata, const TrainOptions& options,
         const SelfTextOptions& self)
      : model_(model),
        options_(options),
        self_(self),
        tokenizer_(Tokenizer::from_metadata(metadata)) {
    if (self.prompts.empty())
      prompts_.push_back({first_token(*tokenizer_), {}});
    else
      with_frame(self.prompts, [&] { read_prompts(metadata); });
  }

  /// All rows, one a line.
  std::string write() {
    std::string rows;
    Progress bar("writing text", self_.tokens, "tokens");
    for (int64_t number = 0; kept_tokens_ < self_.tokens; ++number) {
      rows += row(prompts_[number % prompts_.size()], number);
      bar.update(std::min(kept_tokens_, self_.tokens));
    }
    return rows;
  }
  int64_t num_rows() const { return num_rows_; }
  int64_t num_left_out() const { return left_out_; }

 private:
  int64_t length() const { return options_.data.sequence_length; }

  void read_prompts(const GgufMetadata& metadata) {
    prompts_ = options_.data.is_chat()
                   ? chat_prompts(self_.prompts, metadata, *tokenizer_)
                   : text_prompts(self_.prompts, options_.data.text_field, *tokenizer_);
    check(!prompts_.empty(), "has no prompt");
    for (size_t i = 0; i < prompts_.size(); ++i)
      check(static_cast<int64_t>(prompts_[i].ids.size()) < length(), "prompt ", i + 1, " has ",
            prompts_[i].ids.size(), " tokens, wanted less than data.sequence_length ", length());
  }

  /// One text as a line, or nothing where it is left out.
  std::string row(const Prompt& prompt, int64_t number) {
    std::vector<int32_t> ids = prompt.ids;
    GenerateOptions generating;
    generating.max_tokens = length() - static_cast<int64_t>(ids.size());
    generating.temperature = self_.temperature;
    generating.seed =
        options_.seed * 0x9e3779b97f4a7c15ULL + static_cast<uint64_t>(number);  // apart for each
    const std::vector<int32_t> own = generate(model_, *tokenizer_, ids, generating);
    ids.insert(ids.end(), own.begin(), own.end());
    const auto size = static_cast<int64_t>(ids.size());
    sampled_ += size;
    // The end of an answer is learned, so it must be one.
    if (options_.data.is_chat() && size == length()) {
      ++left_out_;
      check(sampled_ <= kMostPerKept * self_.tokens, "of ", number + 1, " answers only ", num_rows_,
            " end within data.sequence_length, ", length(), " tokens");
      return "";
    }
    kept_tokens_ += size;
    ++num_rows_;
    // Decoded with the prompt: a sentencepiece text's first space is not part of it.
    const std::string text = tokenizer_->decode(ids);
    Json row = prompt.row;
    if (options_.data.is_chat())
      row["messages"].push_back(
          {{"role", "assistant"}, {"content", text.substr(tokenizer_->decode(prompt.ids).size())}});
    else
      row[options_.data.text_field] = text;
    // A token can be a part of a character.
    return row.dump(-1, ' ', false, Json::error_handler_t::replace) + '\n';
  }

  Model& model_;
  const TrainOptions& options_;
  const SelfTextOptions& self_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<Prompt> prompts_;
  int64_t num_rows_ = 0, left_out_ = 0;
  int64_t kept_tokens_ = 0, sampled_ = 0;  // prompts included
};

}  // namespace

void write_self_text(Model& model, const GgufMetadata& metadata, const TrainOptions& options,
                     const SelfTextOptions& self, const std::string& path) {
  Writer writer(model, metadata, options, self);
  write_file(path, writer.write());
  note(path, ": ", writer.num_rows(), " texts that the model wrote at temperature ",
       self.temperature,
       writer.num_left_out() > 0
           ? concat("; ", writer.num_left_out(), " answers that did not end are left out")
           : "");
}

void make_self_text(TrainOptions& options, const SelfTextOptions& self, const GgufFile& source,
                    const std::string& run_dir, bool keep) {
  const auto entry = std::find(options.data.files.begin(), options.data.files.end(), kSelf);
  if (entry == options.data.files.end()) return;
  *entry = self_text_path(run_dir);
  if (keep && std::filesystem::exists(*entry)) return;
  create_folders(run_dir);
  const torch::Device device = torch_device(options.device);
  const std::unique_ptr<Model> model = load_model(source, device);
  model->set_compute_dtype(parse_compute_dtype(options.dtype, device));
  model->keep_matrices_cast();
  write_self_text(*model, source.metadata(), options, self, *entry);
}

}  // namespace nibble
