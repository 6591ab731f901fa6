#include "quant/mix/plan.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <regex>

#include "base/error.h"
#include "quant/format/registry.h"
#include "quant/mix/mix.h"

namespace nibble {
namespace {

// LLAMA_FTYPE_GUESSED in llama.cpp include/llama.h: the file did not say it.
constexpr int kGuessed = 1024;

const FileTypeInfo& require_file_type(const std::string& name) {
  if (const FileTypeInfo* info = find_file_type(name)) return *info;
  fail_usage("unknown quantization type '", name, "'", did_you_mean(name, plan_type_names()));
}

std::string lower_case(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

struct Choice {
  GgmlType type;
  std::string reason;
};

Choice choose(GgmlType type, std::string_view why = "") {
  return {type, concat(type_name(type), why.empty() ? "" : ": ", why)};
}

/// What the user asked for, else the mix. Tensors are asked about in llama-quantize's own order,
/// since some rules count, and by the names that they will have.
class Chooser {
 public:
  Chooser(const PlanOptions& options, const FileTypeInfo& file_type, MixFacts facts)
      : options_(options), type_(file_type.tensor_type), mix_(std::move(facts), file_type) {
    for (const auto& [pattern, type] : options.tensor_types) add_pattern(pattern, type);
  }

  Choice choose_for(const std::string& name, const GgufTensor& tensor) {
    const std::string_view kept = kept_because(name, tensor.shape, mix_.facts().architecture);
    if (!kept.empty()) return {tensor.type, concat("kept: ", kept)};
    const TensorRole role = role_of(name);
    if (role == TensorRole::kOutput && options_.leave_output_tensor)
      return {tensor.type, "kept: the output is to be left"};
    const GgmlType* named = find_pattern(name);
    if (role == TensorRole::kTokenEmbedding && options_.token_embedding_type &&
        !(named && name == "per_layer_token_embd.weight"))
      return forced(tensor, *options_.token_embedding_type, "asked for the token embedding");
    if (role == TensorRole::kOutput && options_.output_type)
      return forced(tensor, *options_.output_type, "asked for the output");
    if (!is_quantized(type_)) return choose(type_);
    const Choice choice = named           ? choose(*named, "asked for by name")
                          : options_.pure ? choose(type_)
                                          : mixed(name, tensor, role);
    return fitted(choice, tensor.row_length());
  }

 private:
  void add_pattern(const std::string& pattern, GgmlType type) {
    try {
      patterns_.emplace_back(std::regex(lower_case(pattern)), type);
    } catch (const std::regex_error& error) {
      fail_usage("tensor type pattern '", pattern, "': no regular expression: ", error.what());
    }
  }

  const GgmlType* find_pattern(const std::string& name) const {
    for (const auto& [pattern, type] : patterns_)
      if (std::regex_search(name, pattern)) return &type;
    return nullptr;
  }

  /// llama-quantize puts no fallback behind a type that was asked for.
  static Choice forced(const GgufTensor& tensor, GgmlType type, std::string_view why) {
    if (tensor.row_length() % ggml_type_info(type).block_size != 0)
      fail_usage(type_name(type), " was asked for, but rows of ", tensor.row_length(),
                 " weights are no multiple of its block of ", ggml_type_info(type).block_size);
    return choose(type, why);
  }

  static Choice fitted(Choice choice, int64_t row_length) {
    const GgmlType fits = type_that_fits(choice.type, row_length);
    if (fits == choice.type) return choice;
    return {fits, concat(choice.reason, "; ", type_name(fits), ": rows of ", row_length,
                         ", no multiple of ", ggml_type_info(choice.type).block_size)};
  }

  Choice mixed(const std::string& name, const GgufTensor& tensor, TensorRole role) {
    const GgmlType type = mix_.choose(name, tensor.shape, role);
    const bool is_output = role == TensorRole::kTokenEmbedding && mix_.facts().tied;
    if (is_output && options_.output_type)
      return choose(*options_.output_type, "asked for the output");
    if (type == type_) return choose(type);
    return choose(type, is_output ? "embedding, also the output" : role_name(role));
  }

  const PlanOptions& options_;
  GgmlType type_;
  Mix mix_;
  std::vector<std::pair<std::regex, GgmlType>> patterns_;
};

/// Indices of the tensors by layer, then name, those outside the layers first; or by place, where
/// parts are kept.
std::vector<size_t> llama_order(const std::vector<GgufTensor>& tensors, bool by_place) {
  const auto before = [&](size_t i, size_t j) {
    const GgufTensor &a = tensors[i], &b = tensors[j];
    if (by_place) return std::pair(a.part, a.file_offset) < std::pair(b.part, b.file_offset);
    return std::pair(layer_of(a.name).value_or(-1), a.name) <
           std::pair(layer_of(b.name).value_or(-1), b.name);
  };
  std::vector<size_t> order(tensors.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), before);
  return order;
}

/// What a copy says of itself: as the source, or after the type of most tensors.
int file_type_of_copy(const GgufFile& source, const GgufMetadata& metadata) {
  constexpr const char* kKey = "general.file_type";
  if (metadata.contains(kKey)) return static_cast<int>(metadata.get_int(kKey));
  std::map<GgmlType, int> counts;
  GgmlType most = GgmlType::kF32;
  for (const size_t index : llama_order(source.tensors(), false)) {
    const GgmlType type = source.tensors()[index].type;
    if (++counts[type] > counts[most]) most = type;
  }
  const FileTypeInfo* info = find_file_type(type_name(most));
  return kGuessed + static_cast<int>(info ? info->type : FileType::kF32);
}

void check_pruned_layers(const GgufFile& source, const std::vector<int64_t>& pruned,
                         int64_t num_layers) {
  for (const int64_t layer : pruned)
    if (layer < 0 || layer >= num_layers)
      fail_usage(source.path(), ": has no layer ", layer, " to prune, but ", num_layers);
  if (std::ssize(pruned) == num_layers && num_layers > 0)
    fail_usage(source.path(), ": to prune all ", num_layers, " layers would leave no model");
}

/// The elements of the layers that stay.
GgufArray without_layers(const GgufArray& array, const std::vector<int64_t>& pruned) {
  GgufArray left = array;
  std::visit(
      [&](auto& values) {
        for (auto layer = pruned.rbegin(); layer != pruned.rend(); ++layer)
          values.erase(values.begin() + *layer);
      },
      left.values);
  return left;
}

/// The metadata that tells of layers, as it is without the pruned ones. llama-quantize leaves
/// arrays as they are, and then llama.cpp refuses the file.
void add_pruned_metadata(const GgufMetadata& metadata, const MixFacts& facts, Plan& plan) {
  const std::string prefix = facts.architecture + '.';
  for (const auto& [key, value] : metadata.pairs()) {
    const auto* array = std::get_if<GgufArray>(&value);
    // Four numbers, whatever the number of layers.
    if (!array || key == prefix + "rope.dimension_sections") continue;
    if (key.starts_with(prefix) && array->size() == facts.num_layers)
      plan.metadata.emplace_back(key, without_layers(*array, plan.pruned_layers));
  }
  const int64_t left = facts.num_layers - std::ssize(plan.pruned_layers);
  plan.metadata.emplace_back(prefix + "block_count", static_cast<uint32_t>(left));
}

/// One entry for each tensor that stays, by the rules.
std::vector<PlanEntry> choose_all(const GgufFile& source, const PlanOptions& options,
                                  const FileTypeInfo& file_type, MixFacts facts) {
  const std::vector<GgufTensor>& tensors = source.tensors();
  std::vector<PlanEntry> entries(tensors.size());
  Chooser chooser(options, file_type, std::move(facts));
  for (const size_t index : llama_order(tensors, options.keep_split)) {
    const GgufTensor& tensor = tensors[index];
    if (is_in_layers(tensor.name, options.pruned_layers)) continue;
    const std::string name = name_after_pruning(tensor.name, options.pruned_layers);
    Choice choice =
        with_frame(concat("tensor '", name, "'"), [&] { return chooser.choose_for(name, tensor); });
    entries[index] = {tensor.name, tensor.shape, tensor.type, choice.type,
                      std::move(choice.reason)};
  }
  std::erase_if(entries, [](const PlanEntry& entry) { return entry.tensor.empty(); });
  return entries;
}

std::vector<PlanEntry> copy_all(const GgufFile& source, const std::vector<int64_t>& pruned) {
  std::vector<PlanEntry> entries;
  for (const GgufTensor& tensor : source.tensors())
    if (!is_in_layers(tensor.name, pruned))
      entries.push_back({tensor.name, tensor.shape, tensor.type, tensor.type, "kept: copied"});
  return entries;
}

std::vector<std::string> names_left(const GgufFile& source, const std::vector<int64_t>& pruned) {
  std::vector<std::string> names;
  for (const GgufTensor& tensor : source.tensors())
    if (!is_in_layers(tensor.name, pruned)) names.push_back(tensor.name);
  return names;
}

}  // namespace

std::vector<std::string> plan_type_names() {
  std::vector<std::string> names;
  for (const FileTypeInfo& info : file_types()) names.emplace_back(info.name);
  return names;
}

Plan make_plan(const GgufFile& source, const PlanOptions& options) {
  const bool copies = lower_case(options.type_name) == "copy";
  const FileTypeInfo& file_type = require_file_type(copies ? "F32" : options.type_name);
  GgufMetadata metadata = source.metadata();
  for (const auto& [key, value] : options.metadata) metadata.set(key, value);
  MixFacts facts =
      mix_facts(metadata, names_left(source, options.pruned_layers), options.has_imatrix);
  check_pruned_layers(source, options.pruned_layers, facts.num_layers);

  Plan plan;
  plan.type_name = copies ? "COPY" : file_type.name;
  plan.file_type = copies ? file_type_of_copy(source, metadata) : static_cast<int>(file_type.type);
  plan.metadata = options.metadata;
  plan.pruned_layers = options.pruned_layers;
  plan.keep_split = options.keep_split;
  if (!plan.pruned_layers.empty()) add_pruned_metadata(metadata, facts, plan);
  plan.entries = copies ? copy_all(source, options.pruned_layers)
                        : choose_all(source, options, file_type, std::move(facts));
  if (!options.allow_requantize) check_requantizing(source, plan);
  return plan;
}

void check_requantizing(const GgufFile& source, const Plan& plan) {
  for (const PlanEntry& entry : plan.entries)
    if (is_quantized(entry.source) && entry.target != entry.source)
      fail_usage(source.path(), ": tensor '", entry.tensor, "' is ", type_name(entry.source),
                 " already; making ", type_name(entry.target),
                 " of it loses quality twice (--allow-requantize does it all the same)");
}

Plan plan_like(const GgufFile& source, const GgufFile& file) {
  Plan plan;
  plan.file_type = file_type_of_copy(file, file.metadata());
  plan.type_name = "mixed";
  for (const FileTypeInfo& info : file_types())  // an alias comes before what it stands for
    if (static_cast<int>(info.type) == (plan.file_type & ~kGuessed)) plan.type_name = info.name;
  for (const GgufTensor& tensor : source.tensors()) {
    const GgufTensor* other = file.find_tensor(tensor.name);
    if (!other)
      fail_usage(file.path(), ": has no tensor '", tensor.name, "', which ", source.path(), " has");
    if (other->shape != tensor.shape)
      fail_usage(file.path(), ": tensor '", tensor.name, "' has another shape than in ",
                 source.path());
    plan.entries.push_back({tensor.name, tensor.shape, tensor.type, other->type,
                            concat(type_name(other->type), ": as the file has it")});
  }
  for (const GgufTensor& tensor : file.tensors())
    if (!source.find_tensor(tensor.name))
      fail_usage(file.path(), ": has tensor '", tensor.name, "', which ", source.path(), " lacks");
  return plan;
}

const PlanEntry* Plan::find(std::string_view tensor) const {
  for (const PlanEntry& entry : entries)
    if (entry.tensor == tensor) return &entry;
  return nullptr;
}

int64_t PlanEntry::bytes_as(GgmlType type) const {
  int64_t bytes = row_bytes(type, shape.empty() ? 1 : shape[0]);
  for (size_t i = 1; i < shape.size(); ++i) bytes *= shape[i];
  return bytes;
}

int64_t Plan::total_bytes() const {
  int64_t total = 0;
  for (const PlanEntry& entry : entries) total += entry.bytes_as(entry.target);
  return total;
}

}  // namespace nibble
