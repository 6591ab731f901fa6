#include "quant/mix/plan.h"

#include <algorithm>
#include <cctype>
#include <regex>

#include "base/error.h"
#include "quant/format/registry.h"
#include "quant/mix/rules.h"

namespace nibble {
namespace {

struct TypeRow {
  std::string_view name;
  GgmlType type;
  int file_type;  // llama_ftype in llama.cpp include/llama.h
};

constexpr TypeRow kTypes[] = {
    {"Q4_0", GgmlType::kQ4_0, 2},  {"Q4_1", GgmlType::kQ4_1, 3}, {"Q5_0", GgmlType::kQ5_0, 8},
    {"Q5_1", GgmlType::kQ5_1, 9},  {"Q8_0", GgmlType::kQ8_0, 7}, {"Q2_0", GgmlType::kQ2_0, 41},
    {"BF16", GgmlType::kBF16, 32}, {"F16", GgmlType::kF16, 1},   {"F32", GgmlType::kF32, 0},
};

const TypeRow& find_type(const std::string& name) {
  for (const TypeRow& row : kTypes)
    if (row.name == name) return row;
  if (const std::string refusal = encode_refusal(name); !refusal.empty()) fail_usage(refusal);
  fail_usage("unknown quantization type '", name, "'", did_you_mean(name, plan_type_names()));
}

std::string upper_case(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
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

/// The rules of one file. Tensors are asked about in llama-quantize's own order, since some rules
/// count.
class Mix {
 public:
  Mix(const GgufFile& source, const PlanOptions& options, const TypeRow& row)
      : options_(options),
        type_(row.type),
        architecture_(source.metadata().get_string_or("general.architecture", "")),
        num_layers_(source.metadata().get_int_or(architecture_ + ".block_count", 0)),
        num_experts_(source.metadata().get_int_or(architecture_ + ".expert_count", 0)),
        tied_(!source.find_tensor("output.weight")) {
    for (const auto& [pattern, type] : options.tensor_types) add_pattern(pattern, type);
  }

  Choice choose_for(const GgufTensor& tensor) {
    const std::string_view kept = kept_because(tensor.name, tensor.shape, architecture_);
    if (!kept.empty()) return {tensor.type, concat("kept: ", kept)};
    const TensorRole role = role_of(tensor.name);
    if (role == TensorRole::kOutput && options_.leave_output_tensor)
      return {tensor.type, "kept: the output is to be left"};
    const GgmlType* named = find_pattern(tensor.name);
    if (role == TensorRole::kTokenEmbedding && options_.token_embedding_type &&
        !(named && tensor.name == "per_layer_token_embd.weight"))
      return forced(tensor, *options_.token_embedding_type, "asked for the token embedding");
    if (role == TensorRole::kOutput && options_.output_type)
      return forced(tensor, *options_.output_type, "asked for the output");
    if (!is_quantized(type_)) return choose(type_);
    const Choice choice = named           ? choose(*named, "asked for by name")
                          : options_.pure ? choose(type_)
                                          : mixed(tensor, role);
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
      fail_usage("tensor '", tensor.name, "': ", type_name(type), " was asked for, but rows of ",
                 tensor.row_length(), " weights are no multiple of its block of ",
                 ggml_type_info(type).block_size);
    return choose(type, why);
  }

  static Choice fitted(Choice choice, int64_t row_length) {
    const GgmlType fits = type_that_fits(choice.type, row_length);
    if (fits == choice.type) return choice;
    return {fits, concat(choice.reason, "; ", type_name(fits), ": rows of ", row_length,
                         ", no multiple of ", ggml_type_info(choice.type).block_size)};
  }

  Choice mixed(const GgufTensor& tensor, TensorRole role) {
    if (architecture_ == "glm5-next")
      for (const std::string_view part : {"attn_q_a", "attn_q_b", "nextn.eh_proj"})
        if (tensor.name.find(part) != std::string::npos)
          return choose(GgmlType::kQ8_0, "sensitive in glm5-next");
    if (role == TensorRole::kOutput) return output(tensor, "output");
    if (role == TensorRole::kTokenEmbedding && tied_)
      return output(tensor, "embedding, also the output");
    if (role == TensorRole::kTokenEmbedding && type_ == GgmlType::kQ2_0)
      return choose(GgmlType::kQ4_K, "embedding");
    if ((role == TensorRole::kAttentionV || role == TensorRole::kAttentionK) && num_experts_ == 8)
      return choose(GgmlType::kQ8_0, "small beside 8 experts");
    if (role == TensorRole::kFfnDown) return ffn_down(tensor);
    return choose(type_);
  }

  Choice output(const GgufTensor& tensor, std::string_view what) const {
    if (options_.output_type) return choose(*options_.output_type, "asked for the output");
    const bool divides = tensor.row_length() % ggml_type_info(type_).block_size == 0;
    if (architecture_ == "falcon" || !divides || type_ == GgmlType::kQ8_0)
      return choose(GgmlType::kQ8_0, what);
    return choose(GgmlType::kQ6_K, what);
  }

  /// With an imatrix the first eighth of the layers gets a min as well.
  Choice ffn_down(const GgufTensor& tensor) {
    int64_t layer = num_ffn_down_++;
    if (num_experts_ > 1) {
      const std::optional<int64_t> named = layer_of(tensor.name);
      check(named && *named >= 0 && *named < num_layers_, "tensor '", tensor.name,
            "': its name should hold a layer below ", num_layers_);
      layer = *named;
    }
    const bool early = options_.has_imatrix && layer < num_layers_ / 8;
    if (early && type_ == GgmlType::kQ4_0)
      return choose(GgmlType::kQ4_1, "early ffn_down with an imatrix");
    if (early && type_ == GgmlType::kQ5_0)
      return choose(GgmlType::kQ5_1, "early ffn_down with an imatrix");
    return choose(type_);
  }

  const PlanOptions& options_;
  GgmlType type_;
  std::string architecture_;
  int64_t num_layers_, num_experts_;
  bool tied_;
  int64_t num_ffn_down_ = 0;
  std::vector<std::pair<std::regex, GgmlType>> patterns_;
};

/// Indices of the tensors by layer, then name; those outside the layers first.
std::vector<size_t> llama_order(const std::vector<GgufTensor>& tensors) {
  std::vector<std::pair<int64_t, size_t>> keys;
  for (size_t i = 0; i < tensors.size(); ++i)
    keys.emplace_back(layer_of(tensors[i].name).value_or(-1), i);
  std::sort(keys.begin(), keys.end(), [&](const auto& a, const auto& b) {
    if (a.first != b.first) return a.first < b.first;
    return tensors[a.second].name < tensors[b.second].name;
  });
  std::vector<size_t> order;
  for (const auto& [layer, index] : keys) order.push_back(index);
  return order;
}

}  // namespace

std::vector<std::string> plan_type_names() {
  std::vector<std::string> names;
  for (const TypeRow& row : kTypes) names.emplace_back(row.name);
  return names;
}

Plan make_plan(const GgufFile& source, const PlanOptions& options) {
  const TypeRow& row = find_type(upper_case(options.type_name));
  Plan plan{std::string(row.name), row.file_type, {}};
  plan.entries.resize(source.tensors().size());
  Mix mix(source, options, row);
  for (const size_t index : llama_order(source.tensors())) {
    const GgufTensor& tensor = source.tensors()[index];
    Choice choice = mix.choose_for(tensor);
    if (is_quantized(tensor.type) && choice.type != tensor.type && !options.allow_requantize)
      fail_usage(source.path(), ": tensor '", tensor.name, "' is ", type_name(tensor.type),
                 " already; making ", type_name(choice.type),
                 " of it loses quality twice (--allow-requantize does it all the same)");
    plan.entries[index] = {tensor.name, tensor.shape, tensor.type, choice.type,
                           std::move(choice.reason)};
  }
  return plan;
}

const PlanEntry* Plan::find(std::string_view tensor) const {
  for (const PlanEntry& entry : entries)
    if (entry.tensor == tensor) return &entry;
  return nullptr;
}

int64_t Plan::total_bytes() const {
  int64_t total = 0;
  for (const PlanEntry& entry : entries) {
    int64_t bytes = row_bytes(entry.target, entry.shape.empty() ? 1 : entry.shape[0]);
    for (size_t i = 1; i < entry.shape.size(); ++i) bytes *= entry.shape[i];
    total += bytes;
  }
  return total;
}

}  // namespace nibble
