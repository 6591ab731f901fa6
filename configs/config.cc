#include "configs/config.h"

#include <glob.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "configs/field.h"
#include "configs/yaml.h"
#include "io/atomic_file.h"
#include "io/model_cache.h"
#include "model/hf/convert.h"
#include "model/model.h"
#include "quant/format/registry.h"
#include "quant/mix/file_type.h"
#include "quant/mix/tensor_types.h"
#include "training/calibrate.h"
#include "training/name_patterns.h"
#include "training/train_tokenizer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// Bounds that no sensible run touches; they catch a slip of the hand before it costs an hour.
constexpr double kMaxTokens = 1e15;
constexpr double kMaxMinutes = 1e6;

/// Why a file type cannot be had: its tensors' type is only decoded. "" where it can, and for other
/// texts.
std::string type_refusal(std::string_view name) {
  const std::string refusal = encode_refusal(name);
  if (!refusal.empty()) return refusal;
  const FileTypeInfo* file_type = find_file_type(name);
  return file_type ? encode_refusal(type_name(file_type->tensor_type)) : "";
}

std::vector<std::string> type_choices(bool with_none) {
  std::vector<std::string> names;
  for (const std::string& name : plan_type_names())
    if (type_refusal(name).empty()) names.push_back(name);
  if (with_none) names.push_back("none");
  return names;
}

/// Types that single tensors can be asked to have.
std::vector<std::string> tensor_type_choices() {
  std::vector<std::string> names;
  for (const Format& format : formats()) names.emplace_back(format.name);
  return names;
}

const std::string kNewModel = "new_model.";

/// The whole schema, in the order in which it is written back.
std::vector<Field> config_fields(RunConfig& c) {
  TrainOptions& t = c.train;
  return {
      {"name", &c.name},
      {"model", &c.model},
      {"adapter", &c.adapter},
      {"teacher", &t.teacher},
      {"stream_teacher", &t.stream_teacher},
      {"output", &c.output},
      {"new_model.architecture", &c.new_model.architecture, 0, 0, {"llama"}},
      {"new_model.width", &c.new_model.width, 1, 1 << 17},
      {"new_model.feed_forward", &c.new_model.feed_forward, 1, 1 << 20},
      {"new_model.layers", &c.new_model.layers, 1, 4096},
      {"new_model.heads", &c.new_model.heads, 1, 4096},
      {"new_model.kv_heads", &c.new_model.kv_heads, 1, 4096},
      {"new_model.context", &c.new_model.context, 2, 1 << 24},
      {"new_model.vocab_size", &c.new_model.vocab_size, kMinVocabSize, 1 << 20},
      {"new_model.tied", &c.new_model.tied},
      {"quant.type", &t.quant.type, 0, 0, type_choices(true), type_refusal},
      {"quant.pure", &c.mix.pure},
      {"quant.output_tensor_type", &c.mix.output_tensor_type, 0, 0, tensor_type_choices(),
       encode_refusal},
      {"quant.token_embedding_type", &c.mix.token_embedding_type, 0, 0, tensor_type_choices(),
       encode_refusal},
      {"quant.tensor_type", &c.mix.tensor_type},
      {"quant.tensor_types", &c.mix.tensor_types},
      {"quant.weights", &t.quant.weights, 0, 0, {"full", "lora", "rounding", "scales"}},
      {"quant.lora_rank", &t.quant.lora_rank, 1, 1 << 16},
      {"quant.scales", &t.quant.scales, 0, 0, {"learned", "dynamic", "frozen"}},
      {"quant.initial",
       &t.quant.initial,
       0,
       0,
       {"search", "imatrix", "gptq", "awq", "ggml", "rtn"}},
      {"quant.calibration_tokens", &t.quant.calibration_tokens, 1, kMaxTokens},
      {"quant.estimator", &t.quant.estimator, 0, 0, estimator_names()},
      {"quant.activations", &t.quant.activations, 0, 0, {"none", "llama_cpu", "llama_cuda"}},
      {"quant.frozen", &t.quant.frozen},
      {"init.file", &t.quant.init_file},
      {"data.files", &t.data.files},
      {"data.weights", &t.data.weights, 0, 1e6},
      {"data.format", &t.data.format, 0, 0, {"text", "chat"}},
      {"data.answers_only", &t.data.answers_only},
      {"data.text_field", &t.data.text_field},
      {"data.sequence_length", &t.data.sequence_length, 2, 1 << 20},
      {"data.held_out", &t.data.held_out, 0, 0.5},
      {"data.max_bytes", &t.data.max_bytes, 0, kMaxTokens},
      {"self.tokens", &c.self.tokens, 1, kMaxTokens},
      {"self.temperature", &c.self.temperature, 0, 100},
      {"self.prompts", &c.self.prompts},
      {"self.at_once", &c.self.at_once, 1, 1024},
      {"self.endpoint", &c.self.endpoint.url},
      {"self.model", &c.self.endpoint.model},
      {"loss.kind", &t.loss.kind, 0, 0, {"kl", "ce", "mix"}},
      {"loss.ce_weight", &t.loss.ce_weight, 0, 1},
      {"loss.chunk_positions", &t.loss.chunk_positions, 1, 1 << 20},
      {"loss.load_balance", &t.loss.load_balance, 0, 10},
      {"loss.teacher_top_k", &t.loss.teacher_top_k, 0, 1 << 20},
      {"loss.teacher_cache", &t.loss.teacher_cache},
      {"optimizer.learning_rate", &t.optimizer.learning_rate, 0, 1},
      {"optimizer.scale_learning_rate", &t.optimizer.scale_learning_rate, 0, 1},
      {"optimizer.relative", &t.optimizer.relative},
      {"optimizer.weight_decay", &t.optimizer.weight_decay, 0, 10},
      {"optimizer.beta1", &t.optimizer.beta1, 0, 0.999999},
      {"optimizer.beta2", &t.optimizer.beta2, 0, 0.999999},
      {"optimizer.epsilon", &t.optimizer.epsilon, 1e-20, 1},
      {"optimizer.clip_norm", &t.optimizer.clip_norm, 0, 1e6},
      {"optimizer.warmup", &t.optimizer.warmup, 0, 1},
      {"optimizer.final_ratio", &t.optimizer.final_ratio, 0, 1},
      {"blockwise.tokens", &t.blockwise.tokens, 0, kMaxTokens},
      {"blockwise.epochs", &t.blockwise.epochs, 1, 1000},
      {"blockwise.batch_tokens", &t.blockwise.batch_tokens, 1, 1e9},
      {"blockwise.learning_rate", &t.blockwise.learning_rate, 0, 1},
      {"blockwise.scale_learning_rate", &t.blockwise.scale_learning_rate, 0, 1},
      {"batch_tokens", &t.batch_tokens, 1, 1e9},
      {"micro_batch_tokens", &t.micro_batch_tokens, 1, 1e9},
      {"max_tokens", &t.max_tokens, 1, kMaxTokens},
      {"max_minutes", &t.max_minutes, 0, kMaxMinutes},
      {"evaluate_every", &t.evaluate_every, 0, kMaxTokens},
      {"early_stop", &t.early_stop, 0, kMaxTokens},
      {"checkpoint_every", &t.checkpoint_every, 0, kMaxTokens},
      {"dtype", &t.dtype, 0, 0, {"auto", "float32", "bfloat16"}},
      {"activation_checkpointing", &t.activation_checkpointing},
      {"seed", &t.seed},
      {"baselines",
       &c.baselines,
       0,
       0,
       {"ggml", "search", "imatrix", "gptq", "awq", "blockwise", "rtn"}},
      {"control", &c.control},
      {"compare.text", &c.compare.text},
      {"compare.ctx", &c.compare.ctx, 4, 1 << 20},
      {"compare.chunks", &c.compare.chunks, -1, kMaxTokens},
      {"compare.types", &c.compare.types, 0, 0, type_choices(false), type_refusal},
      {"compare.also", &c.compare.also},
      {"compare.matrix", &c.compare.matrix, 0, 0, type_choices(false), type_refusal},
      {"prompts", &c.prompts},
      {"prompt_tokens", &c.prompt_tokens, 1, 4096},
  };
}

/// A setting that the rest of the configuration leaves without effect.
struct Ignored {
  std::string key, reason;
};

std::vector<Ignored> ignored_settings(const RunConfig& c) {
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
          "blockwise.scale_learning_rate"});
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
  ignore(t.loss.kind != "ce" && t.loss.teacher_top_k > 0,
         "loss.teacher_top_k lets go of the teacher before training", {"stream_teacher"});
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
      if (!find(kNewModel + key)) refuse(kNewModel + key, "is missing and has no default");
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

/// A micro batch that nobody asked for is no reason to refuse a batch that its default does not
/// divide.
void fit_micro_batch(TrainOptions& options) {
  const int64_t micro = options.micro_batch_tokens, sequence = options.data.sequence_length;
  if (options.batch_tokens % micro != 0 || micro % sequence != 0)
    options.micro_batch_tokens = sequence;
}

}  // namespace

RunConfig parse_config(const std::string& text, const std::string& origin,
                       const std::vector<ConfigOverride>& overrides) {
  RunConfig config;
  const std::vector<Field> fields = config_fields(config);
  std::vector<GivenKey> given = read_fields(fields, parse_yaml(text, origin));
  for (const ConfigOverride& assignment : overrides)
    given.push_back(read_override(fields, assignment));

  const auto is_given = [&](const char* key) {
    return std::any_of(given.begin(), given.end(), [&](const auto& g) { return g.key == key; });
  };
  if (!is_given("name")) config.name = fs::path(origin).stem().string();
  if (!is_given("output")) config.output = "runs/" + config.name;
  if (!is_given("new_model.kv_heads")) config.new_model.kv_heads = config.new_model.heads;
  if (!is_given("micro_batch_tokens")) fit_micro_batch(config.train);
  Checker(config, origin, std::move(given)).check_all();
  return config;
}

RunConfig load_config(const std::string& path, const std::vector<ConfigOverride>& overrides) {
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) fail_usage(path, ": no such configuration file");
  return parse_config(read_file(path), path, overrides);
}

bool RunConfig::writes_text() const {
  const std::string own = self_text_path(output);
  return std::any_of(train.data.files.begin(), train.data.files.end(),
                     [&](const std::string& file) { return file == kSelf || file == own; });
}

std::string config_yaml(const RunConfig& config) {
  RunConfig copy = config;
  std::vector<std::string>& files = copy.train.data.files;
  std::replace(files.begin(), files.end(), self_text_path(config.output), std::string(kSelf));
  std::vector<std::string> without;
  for (const Ignored& setting : ignored_settings(config)) without.push_back(setting.key);
  const std::vector<Field> fields = config_fields(copy);
  for (const Field& field : fields)
    if (field.key.starts_with(kNewModel) && !config.makes_model()) without.push_back(field.key);
  if (config.makes_model()) without.push_back("model");
  if (config.adapter.empty()) without.push_back("adapter");
  if (config.self.prompts.empty()) without.push_back("self.prompts");
  if (config.self.endpoint.url.empty()) without.push_back("self.endpoint");
  if (config.self.endpoint.model.empty()) without.push_back("self.model");
  // Where llama-quantize's rules hold there is no type to write.
  if (config.mix.output_tensor_type.empty()) without.push_back("quant.output_tensor_type");
  if (config.mix.token_embedding_type.empty()) without.push_back("quant.token_embedding_type");
  if (config.mix.tensor_types.empty()) without.push_back("quant.tensor_types");
  if (config.init_file().empty()) without.push_back("init.file");
  return write_fields(fields, without);
}

std::vector<std::string> config_keys() {
  RunConfig defaults;
  std::vector<std::string> lines;
  for (const Field& field : config_fields(defaults))
    lines.push_back(field.key + ": " + field.write());
  return lines;
}

}  // namespace nibble
