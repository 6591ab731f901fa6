#include "configs/config_check.h"

#include <glob.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/error.h"
#include "io/model_cache.h"
#include "model/hf/convert.h"
#include "model/model.h"
#include "quant/mix/tensor_types.h"
#include "training/calibrate.h"
#include "training/name_patterns.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

/// Settings with their places, for the checks that need more than one of them.
class Checker {
 public:
  Checker(RunConfig& config, std::string origin, std::vector<GivenKey> given)
      : config_(config), origin_(std::move(origin)), given_(std::move(given)) {}

  void check_all() {
    check_model();
    check_required();
    for (const Ignored& setting : ignored_settings(config_))
      if (const GivenKey* key = find(setting.key))
        fail_usage(key->place, ": ", key->key, ": has no effect, since ", setting.reason);
    check_sizes();
    if (config_.train.quant.activations != "none" && config_.train.dtype != "float32")
      refuse("dtype", "wants float32 where quant.activations is ", config_.train.quant.activations,
             ", found ", config_.train.dtype, ", which rounds activations about as coarsely");
    if (config_.makes_model()) check_new_model();
    if (config_.writes_text()) check_self();
    if (!config_.init_file().empty()) check_init();
    check_paths();
  }

 private:
  const GivenKey* find(const std::string& key) const {
    const GivenKey* found = nullptr;  // the last: an override comes after the file
    for (const GivenKey& given : given_)
      if (given.key == key) found = &given;
    return found;
  }
  template <class... Args>
  [[noreturn]] void refuse(const std::string& key, const Args&... args) const {
    const GivenKey* given = find(key);
    fail_usage(given ? given->place : origin_, ": ", key, ": ", args...);
  }

  /// Either a file or a new model, and of that all that has no default.
  void check_model() const {
    const auto made = std::find_if(given_.begin(), given_.end(), [](const GivenKey& given) {
      return given.key.starts_with(kNewModel);
    });
    if (find("model") && config_.model.empty()) refuse("model", "is empty");
    if (find("model") && made != given_.end())
      fail_usage(made->place, ": ", made->key,
                 ": model is given too; a run starts from a file or from a new model");
    if (!find("model") && made == given_.end())
      refuse(
          "model",
          "is missing: name a GGUF file or a Hugging Face folder, or give new_model to train from "
          "scratch");
    if (made == given_.end()) return;
    for (const char* key : {"width", "feed_forward", "layers", "heads", "vocab_size"})
      if (!find(concat(kNewModel, key)))
        refuse(concat(kNewModel, key), "is missing and has no default");
  }
  void check_new_model() const {
    const NewModelOptions& m = config_.new_model;
    if (m.width % m.heads != 0)
      refuse("new_model.heads", "must divide new_model.width ", m.width, ", found ", m.heads);
    if (m.width / m.heads % 2 != 0)
      refuse("new_model.heads", m.heads, " heads of a width of ", m.width, " are ",
             m.width / m.heads, " wide each; rotary positions want an even number");
    if (m.heads % m.kv_heads != 0)
      refuse("new_model.kv_heads", "must divide new_model.heads ", m.heads, ", found ", m.kv_heads);
    const TrainOptions& t = config_.train;
    if (t.data.sequence_length > m.context)
      refuse("data.sequence_length", t.data.sequence_length, " is more than new_model.context ",
             m.context);
    if (t.loss.kind != "ce")
      refuse("loss.kind", "wants ce, found ", t.loss.kind, ": a new model has nothing to teach");
    if (t.data.is_chat()) refuse("data.format", "a new model has no chat template");
  }
  void check_self() const {
    if (config_.makes_model()) refuse("data.files", "a new model has no text to write: self");
    if (!find("self.tokens")) refuse("self.tokens", "is missing and has no default");
    const std::vector<std::string>& files = config_.train.data.files;
    if (std::count(files.begin(), files.end(), kSelf) > 1) refuse("data.files", "names self twice");
    if (config_.train.data.is_chat() && config_.self.prompts.empty())
      refuse("self.prompts", "is missing: with data.format chat the model answers conversations");
    const std::string& url = config_.self.endpoint.url;
    if (url.empty()) return;
    if (!url.starts_with("http://") && !url.starts_with("https://"))
      refuse("self.endpoint", "wants an address like http://127.0.0.1:8080/v1, found ", url);
    if (config_.self.prompts.empty())
      refuse("self.prompts", "is missing: a server goes on from prompts only");
  }
  void check_init() const {
    if (config_.makes_model()) refuse("init.file", "there is a new model to start from");
    if (config_.train.quant.weights != "scales")
      refuse("init.file", "keeps the file's codes, so it wants quant.weights: scales");
  }
  void check_required() const {
    if (!find("data.files")) refuse("data.files", "is missing and has no default");
    if (config_.train.data.files.empty()) refuse("data.files", "is empty");
    if (config_.name.empty() || config_.name.find('/') != std::string::npos)
      refuse("name", "wants a name without '/', found '", config_.name, "'");
    if (config_.output.empty()) refuse("output", "is empty");
    check_no_repeat("baselines", config_.baselines);
    check_no_repeat("compare.types", config_.compare.types);
    check_no_repeat("compare.matrix", config_.compare.matrix);
  }
  void check_no_repeat(const std::string& key, std::vector<std::string> list) const {
    std::sort(list.begin(), list.end());
    const auto twice = std::adjacent_find(list.begin(), list.end());
    if (twice != list.end()) refuse(key, '\'', *twice, "' is given twice");
  }

  void check_sizes() const {
    const TrainOptions& t = config_.train;
    if (t.batch_tokens < t.data.sequence_length)
      refuse("batch_tokens", t.batch_tokens, " is less than one sequence (data.sequence_length ",
             t.data.sequence_length, ')');
    if (t.batch_tokens % t.data.sequence_length != 0)
      refuse("batch_tokens", t.batch_tokens, " is no multiple of data.sequence_length ",
             t.data.sequence_length);
    if (t.batch_tokens % t.micro_batch_tokens != 0)
      refuse("micro_batch_tokens", "must divide batch_tokens ", t.batch_tokens, ", found ",
             t.micro_batch_tokens);
    if (t.micro_batch_tokens % t.data.sequence_length != 0)
      refuse("micro_batch_tokens", t.micro_batch_tokens, " is no multiple of data.sequence_length ",
             t.data.sequence_length);
    if (t.max_tokens < t.batch_tokens)
      refuse("max_tokens", t.max_tokens, " is less than one step (batch_tokens ", t.batch_tokens,
             ')');
    const BlockwiseOptions& b = t.blockwise;
    if (b.tokens > 0 && b.batch_tokens % t.data.sequence_length != 0)
      refuse("blockwise.batch_tokens", b.batch_tokens, " is no multiple of data.sequence_length ",
             t.data.sequence_length);
    if (b.tokens > 0 && b.tokens < b.batch_tokens)
      refuse("blockwise.tokens", b.tokens, " is less than one step (blockwise.batch_tokens ",
             b.batch_tokens, ')');
    check_weights();
    if (config_.compare.chunks == 0) refuse("compare.chunks", "wants -1 (all) or at least 1");
  }

  void check_weights() const {
    const DataOptions& data = config_.train.data;
    if (data.weights.empty()) return;
    if (data.weights.size() != data.files.size())
      refuse("data.weights", "wants one for each of the ", data.files.size(),
             " entries of data.files, found ", data.weights.size());
    for (const double weight : data.weights)
      if (weight <= 0) refuse("data.weights", "wants numbers above 0, found ", weight);
    if (data.max_bytes > 0)
      refuse("data.max_bytes", "counts all files together: it has no meaning beside data.weights");
  }

  void check_paths() {
    if (!config_.makes_model()) resolve_file("model", config_.model);
    if (!config_.adapter.empty()) resolve_file("adapter", config_.adapter);
    if (!config_.adapter.empty() && !is_hf_folder(config_.model))
      refuse("adapter", "is merged into a Hugging Face folder, model is ",
             config_.makes_model() ? "new" : config_.model);
    if (config_.mtp && !is_hf_folder(config_.model))
      refuse("mtp", "is for a Hugging Face folder, model is ",
             config_.makes_model() ? "new" : config_.model);
    if (!config_.train.teacher.empty()) resolve_file("teacher", config_.train.teacher);
    if (!config_.init_file().empty()) resolve_file("init.file", config_.train.quant.init_file);
    for (std::string& pattern : config_.train.data.files)
      if (pattern != kSelf) resolve_glob(pattern);
    if (!config_.self.prompts.empty()) resolve_file("self.prompts", config_.self.prompts);
    if (!config_.compare.text.empty()) resolve_file("compare.text", config_.compare.text);
    for (std::string& path : config_.compare.also) resolve_file("compare.also", path);
    check_tensor_types();
    check_readable("quant.frozen", [&] { NamePatterns{config_.train.quant.frozen}; });
  }
  void check_tensor_types() {
    MixOptions& mix = config_.mix;
    for (const std::string& text : mix.tensor_type)
      check_readable("quant.tensor_type", [&] { parse_tensor_type(text); });
    if (mix.tensor_types.empty()) return;
    resolve_file("quant.tensor_types", mix.tensor_types);
    check_readable("quant.tensor_types", [&] { read_tensor_types(mix.tensor_types); });
  }
  template <class Read>
  void check_readable(const std::string& key, const Read& read) const {
    try {
      read();
    } catch (const Error& error) {
      refuse(key, error.what());
    }
  }
  /// Where a path that is not in the current folder may be: beside the YAML file.
  std::string beside_origin(const std::string& path) const {
    return (fs::path(origin_).parent_path() / path).lexically_normal().string();
  }
  void resolve_file(const std::string& key, std::string& path) const {
    std::error_code ignored;
    const auto take = [&](const std::string& candidate) {
      const bool is_folder = (key == "model" && is_hf_folder(candidate)) ||
                             (key == "adapter" && fs::is_directory(candidate, ignored));
      if (!is_folder && !fs::is_regular_file(candidate, ignored)) return false;
      path = candidate;
      return true;
    };
    if (take(path) || take(beside_origin(path))) return;
    if ((key == "model" || key == "teacher") && take(downloaded(key, path))) return;
    refuse(key, fs::is_directory(path, ignored) ? "is a folder: " : "no such file: ", path);
  }
  /// A repository that lies in a cache.
  std::string downloaded(const std::string& key, const std::string& model) const {
    const GivenKey* given = find(key);
    return with_frame(concat(given ? given->place : origin_, ": ", key),
                      [&] { return find_model(model); });
  }
  void resolve_glob(std::string& pattern) const {
    for (const std::string& candidate : {pattern, beside_origin(pattern)}) {
      glob_t matches{};
      const bool found = ::glob(candidate.c_str(), 0, nullptr, &matches) == 0;
      globfree(&matches);
      if (!found) continue;
      pattern = candidate;
      return;
    }
    refuse("data.files", "no file matches: ", pattern);
  }

  RunConfig& config_;
  std::string origin_;
  std::vector<GivenKey> given_;
};

}  // namespace

std::vector<Ignored> ignored_settings(const RunConfig& config) {
  const RunConfig& c = config;
  const TrainOptions& t = c.train;
  std::vector<Ignored> ignored;
  const auto ignore = [&](bool holds, const std::string& reason, std::vector<std::string> keys) {
    if (!holds) return;
    for (std::string& key : keys) ignored.push_back({std::move(key), reason});
  };
  const bool none = t.quant.type == "none";
  ignore(none, "quant.type is none",
         {"quant.weights", "quant.lora_rank", "quant.scales", "quant.initial",
          "quant.calibration_tokens", "quant.pure", "quant.output_tensor_type",
          "quant.token_embedding_type", "quant.tensor_type", "quant.tensor_types",
          "quant.estimator", "quant.activations", "quant.frozen", "init.file", "blockwise.tokens",
          "baselines", "control", "compare.matrix"});
  ignore(!none && t.quant.weights != "lora", "quant.weights is not lora", {"quant.lora_rank"});
  const bool scales_alone = !none && t.quant.weights == "scales";
  ignore(scales_alone && t.blockwise.tokens == 0, "quant.weights is scales: nothing else trains",
         {"quant.scales", "quant.estimator"});
  ignore(scales_alone, "quant.weights is scales: nothing else trains",
         {"optimizer.learning_rate", "optimizer.relative", "optimizer.weight_decay",
          "compare.matrix"});
  ignore(!none && !c.init_file().empty(), "init.file gives types, codes and scales",
         {"quant.type", "quant.pure", "quant.output_tensor_type", "quant.token_embedding_type",
          "quant.tensor_type", "quant.tensor_types", "quant.initial", "quant.calibration_tokens",
          "blockwise.tokens"});
  ignore(none || t.blockwise.tokens == 0, "blockwise.tokens is 0",
         {"blockwise.epochs", "blockwise.batch_tokens", "blockwise.learning_rate",
          "blockwise.scale_learning_rate", "blockwise.fisher_tokens"});
  ignore(none || t.quant.scales != "learned",
         "scales are not trained (quant.scales is not learned)",
         {"optimizer.scale_learning_rate", "quant.estimator"});
  ignore(!none && t.quant.scales == "dynamic",
         "quant.scales is dynamic: scales follow from the weights at every step",
         {"quant.initial"});
  const bool calibrates = is_calibrated(t.quant.initial) ||
                          std::any_of(c.baselines.begin(), c.baselines.end(), is_calibrated);
  ignore(!none && !calibrates,
         "neither quant.initial nor a baseline is gptq, awq, imatrix or blockwise",
         {"quant.calibration_tokens"});
  ignore(t.loss.kind != "mix", "loss.kind is not mix", {"loss.ce_weight"});
  ignore(t.loss.kind == "ce", "loss.kind is ce: nothing is distilled",
         {"teacher", "stream_teacher", "loss.teacher_top_k", "loss.teacher_cache"});
  ignore(t.loss.kind != "ce" && t.loss.teacher_top_k == 0, "loss.teacher_top_k is 0",
         {"loss.teacher_cache"});
  ignore(!t.data.is_chat(), "data.format is not chat", {"data.answers_only"});
  ignore(t.data.is_chat(), "data.format is chat", {"data.text_field", "data.max_bytes"});
  ignore(!c.writes_text(), "data.files does not name self",
         {"self.tokens", "self.temperature", "self.prompts", "self.at_once", "self.endpoint",
          "self.model"});
  ignore(c.self.endpoint.url.empty(), "self.endpoint is not set", {"self.model"});
  ignore(!c.writes_text() &&
             std::none_of(t.data.files.begin(), t.data.files.end(),
                          [](const std::string& file) { return file.ends_with(".jsonl"); }),
         "data.files names no .jsonl file", {"data.text_field"});
  ignore(t.evaluate_every == 0, "evaluate_every is 0", {"early_stop"});
  ignore(t.data.held_out == 0, "data.held_out is 0", {"early_stop"});
  ignore(c.compare.text.empty(), "compare.text is not given",
         {"control", "compare.ctx", "compare.chunks", "compare.types", "compare.also",
          "compare.matrix"});
  ignore(c.prompts.empty(), "there are no prompts", {"prompt_tokens"});
  return ignored;
}

void check_config(RunConfig& config, const std::string& origin,
                  const std::vector<GivenKey>& given) {
  Checker(config, origin, given).check_all();
}

}  // namespace nibble
