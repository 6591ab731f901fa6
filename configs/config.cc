#include "configs/config.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "configs/config_check.h"
#include "configs/field.h"
#include "configs/yaml.h"
#include "io/atomic_file.h"
#include "quant/format/registry.h"
#include "quant/mix/file_type.h"
#include "quant/mix/tensor_types.h"
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

/// The whole schema, in the order in which it is written back.
std::vector<Field> config_fields(RunConfig& c) {
  TrainOptions& t = c.train;
  return {
      {"name", &c.name},
      {"model", &c.model},
      {"adapter", &c.adapter},
      {"mtp", &c.mtp},
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
      {"blockwise.fisher_tokens", &t.blockwise.fisher_tokens, 0, kMaxTokens},
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
    for (GivenKey& key : read_override(fields, assignment)) given.push_back(std::move(key));

  const auto is_given = [&](const char* key) {
    return std::any_of(given.begin(), given.end(), [&](const auto& g) { return g.key == key; });
  };
  if (!is_given("name")) config.name = fs::path(origin).stem().string();
  if (!is_given("output")) config.output = "runs/" + config.name;
  if (!is_given("new_model.kv_heads")) config.new_model.kv_heads = config.new_model.heads;
  if (!is_given("micro_batch_tokens")) fit_micro_batch(config.train);
  check_config(config, origin, given);
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
  if (!config.mtp) without.push_back("mtp");
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
