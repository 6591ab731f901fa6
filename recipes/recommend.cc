// nibble recommend: which type to quantize a model to for a memory, a context and a priority.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "io/gguf.h"
#include "model/hf/layout.h"
#include "quant/format/registry.h"
#include "quant/mix/importance.h"
#include "quant/mix/memory_need.h"
#include "quant/mix/plan.h"
#include "quant/mix/quantize_file.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

constexpr const char* kExamples =
    "\nMODEL is a GGUF file, or a Hugging Face folder or config.json, of which no weights are "
    "needed. File sizes are\n"
    "exact for a GGUF file; without the tokenizer (1 to 15 MB) for a config.json. Memory is what "
    "llama.cpp takes: weights, keys and\n"
    "values of the context, compute buffer. The error is that of the weights (root mean square, "
    "docs/formats.md), which\n"
    "ranks types; what a model loses, nibble compare measures.\n"
    "\npriorities:\n"
    "  quality (max_quality)      the least error that fits\n"
    "  balanced                   the smallest file with an error of at most 7 %\n"
    "  speed                      ... of at most 8.2 %: generation is as fast as weights are read\n"
    "  size (max_compression)     ... of at most 15 %; below that, training onto the grid pays: "
    "nibble run\n"
    "\nexamples:\n"
    "  nibble recommend model-F16.gguf --vram 8G --ctx 8192\n"
    "  nibble recommend Qwen3-4B/config.json --vram 6G --kv-type q8_0 --priority quality\n"
    "  nibble recommend --params 7B --vram 8G\n";

/// Of the weights, in percent, by search: docs/formats.md's measured table.
struct TypeError {
  GgmlType type;
  double percent;
};
constexpr TypeError kErrors[] = {
    {GgmlType::kF16, 0.0207}, {GgmlType::kBF16, 0.166},  {GgmlType::kQ8_0, 0.515},
    {GgmlType::kQ6_K, 1.72},  {GgmlType::kQ5_K, 3.47},   {GgmlType::kQ4_K, 7.01},
    {GgmlType::kQ5_1, 3.41},  {GgmlType::kQ5_0, 4.02},   {GgmlType::kQ4_1, 6.97},
    {GgmlType::kQ4_0, 8.09},  {GgmlType::kIQ4_NL, 7.36}, {GgmlType::kIQ4_XS, 7.41},
    {GgmlType::kNVFP4, 8.13}, {GgmlType::kMXFP4, 11.2},  {GgmlType::kQ3_K, 14.3},
    {GgmlType::kQ2_K, 25.9},  {GgmlType::kQ2_0, 35.1},   {GgmlType::kTQ2_0, 37.2},
    {GgmlType::kTQ1_0, 43.5}, {GgmlType::kQ1_0, 60.1}};

struct Priority {
  const char *name, *alias;
  double most_error;  // 0: the least that fits
};
constexpr Priority kPriorities[] = {{"quality", "max_quality", 0},
                                    {"balanced", "", 7},
                                    {"speed", "", 8.2},
                                    {"size", "max_compression", 15}};

/// Below it training repairs what rounding loses.
constexpr double kWorthTraining = 7.5;

struct Candidate {
  std::string name;
  int64_t file_bytes = 0, layers = 0;  // layers: that fit, the output counted
  double bpw = 0, error = 0;
  MemoryNeed need;
  bool fits = true;
};

struct Question {
  ServingOptions serving;
  std::optional<int64_t> memory;  // bytes that weights, cache and computations may take
  Priority priority = kPriorities[1];
};

/// Root mean square over the weights of the plan.
double weight_error(const Plan& plan) {
  double sum = 0, weights = 0;
  for (const PlanEntry& entry : plan.entries) {
    double count = 1;
    for (const int64_t size : entry.shape) count *= static_cast<double>(size);
    weights += count;
    for (const TypeError& of : kErrors)
      if (of.type == entry.target) sum += count * of.percent * of.percent;
  }
  return std::sqrt(sum / weights);
}

/// The plan for a type; nothing where the model cannot be quantized to it without more (an imatrix,
/// other rows).
std::optional<Plan> plan_of(const GgufFile& source, const std::string& type) {
  PlanOptions options;
  options.type_name = type;
  options.allow_requantize = true;
  try {
    Plan plan = make_plan(source, options);
    check_encodable(plan);
    check_importance(plan, nullptr);
    return plan;
  } catch (const Error&) {
    return std::nullopt;
  }
}

int64_t metadata_bytes(const GgufFile& source) {
  int64_t data = 0;
  for (const GgufTensor& tensor : source.tensors())
    data += static_cast<int64_t>(tensor.data.size());
  return std::max<int64_t>(source.file_bytes() - data, 0);
}

std::vector<Candidate> find_candidates(const GgufFile& source, const Question& question) {
  std::vector<Candidate> candidates;
  for (const std::string& type : plan_type_names()) {
    const auto plan = plan_of(source, type);
    if (!plan) continue;
    Candidate& candidate = candidates.emplace_back();
    int64_t weights = 0;
    for (const PlanEntry& entry : plan->entries) weights += entry.bytes_as(GgmlType::kF32) / 4;
    candidate.name = type;
    candidate.file_bytes = plan->total_bytes() + metadata_bytes(source);
    candidate.bpw = 8.0 * static_cast<double>(plan->total_bytes()) / static_cast<double>(weights);
    candidate.error = weight_error(*plan);
    candidate.need = memory_need(source, *plan, question.serving);
    candidate.fits = !question.memory || candidate.need.total() <= *question.memory;
    candidate.layers =
        layers_that_fit(source, *plan, question.serving, question.memory.value_or(INT64_MAX / 2));
  }
  std::stable_sort(
      candidates.begin(), candidates.end(),
      [](const Candidate& a, const Candidate& b) { return a.file_bytes > b.file_bytes; });
  return candidates;
}

/// A type that is no better than another of at most its size is none to recommend; of types that
/// come to the same (aliases, and mixes on models whose rows their blocks do not divide) the last
/// one stands for all.
bool is_beaten(const Candidate& candidate, const std::vector<Candidate>& all) {
  return std::any_of(all.begin(), all.end(), [&](const Candidate& other) {
    const bool same = other.file_bytes == candidate.file_bytes && other.error == candidate.error;
    return (other.file_bytes <= candidate.file_bytes && other.error < candidate.error) ||
           (same && &other > &candidate);
  });
}

/// By the priority, of those that fit; where none does, of all.
const Candidate& choose(const std::vector<Candidate>& all, const Question& question) {
  const bool any_fits =
      std::any_of(all.begin(), all.end(), [](const Candidate& c) { return c.fits; });
  const Candidate *best = nullptr, *least_error = nullptr;
  for (const Candidate& candidate : all) {
    if (is_beaten(candidate, all) || (any_fits && !candidate.fits)) continue;
    if (!least_error || candidate.error < least_error->error) least_error = &candidate;
    const bool good = candidate.error <= question.priority.most_error;
    if (good && (!best || candidate.file_bytes < best->file_bytes)) best = &candidate;
  }
  return best ? *best : *least_error;
}

nlohmann::ordered_json to_json(const Candidate& c) {
  return {{"type", c.name},
          {"file_bytes", c.file_bytes},
          {"bpw", c.bpw},
          {"weight_error", c.error},
          {"weights_bytes", c.need.weights},
          {"kv_bytes", c.need.kv_cache},
          {"compute_bytes", c.need.compute},
          {"total_bytes", c.need.total()},
          {"fits", c.fits},
          {"gpu_layers", c.layers}};
}

void print_json(const std::vector<Candidate>& all, const Candidate& chosen,
                const Question& question) {
  nlohmann::ordered_json json = {{"recommended", chosen.name},
                                 {"priority", question.priority.name},
                                 {"ctx", question.serving.context},
                                 {"kv_type", type_name(question.serving.kv_type)},
                                 {"types", nlohmann::ordered_json::array()}};
  if (question.memory) json["memory_bytes"] = *question.memory;
  for (const Candidate& candidate : all) json["types"].push_back(to_json(candidate));
  std::printf("%s\n", json.dump(2).c_str());
}

std::string fit_text(const Candidate& candidate, const Question& question) {
  if (!question.memory) return "";
  return candidate.fits ? "fits" : concat(candidate.layers, " layers fit");
}

void print_table(const std::vector<Candidate>& all, const Candidate& chosen,
                 const Question& question) {
  std::printf("  %-8s %10s %6s %8s %10s %10s %10s\n", "type", "file", "bits", "error", "KV cache",
              "memory", "");
  for (const Candidate& c : all) {
    if (is_beaten(c, all) && &c != &chosen) continue;
    std::printf("%c %-8s %10s %6.2f %6.1f %% %10s %10s %s\n", &c == &chosen ? '>' : ' ',
                c.name.c_str(), format_bytes(c.file_bytes).c_str(), c.bpw, c.error,
                format_bytes(c.need.kv_cache).c_str(), format_bytes(c.need.total()).c_str(),
                fit_text(c, question).c_str());
  }
}

void print_advice(const Candidate& chosen, const Question& question, const std::string& model) {
  std::printf("\n%s, for %s: %s of memory at a context of %lld", chosen.name.c_str(),
              question.priority.name, format_bytes(chosen.need.total()).c_str(),
              static_cast<long long>(question.serving.context));
  if (!chosen.fits)
    std::printf("; it does not fit %s: llama.cpp with --n-gpu-layers %lld",
                format_bytes(*question.memory).c_str(), static_cast<long long>(chosen.layers));
  std::printf(".\n");
  const bool is_folder = std::filesystem::is_directory(model);
  if (is_folder || model.ends_with(".json"))
    std::printf(
        "make it   nibble convert %s MODEL.gguf\n          nibble quantize MODEL.gguf OUT.gguf "
        "%s\n",
        is_folder ? model.c_str() : std::filesystem::path(model).parent_path().c_str(),
        chosen.name.c_str());
  else if (!model.empty())
    std::printf("make it   nibble quantize %s OUT.gguf %s\n", model.c_str(), chosen.name.c_str());
  if (chosen.error > kWorthTraining)
    std::printf(
        "better    train it onto that grid, same size: nibble run CONFIG.yaml with quant.type: "
        "%s\n",
        chosen.name.c_str());
}

/// A llama of about so many weights: heads of 128, a quarter of them for keys, 8/3 as wide inside,
/// one layer for each 128 of the width (as llama's own sizes have it, by and large).
GgufFile layout_of_size(double weights) {
  constexpr int64_t kHead = 128, kVocab = 64000;
  const auto heads =
      std::max<int64_t>(4, std::llround(std::cbrt(weights / (11.0 * kHead * kHead)) / 4) * 4);
  const int64_t width = heads * kHead, layers = heads, inner = width * 8 / 3 / 256 * 256,
                key = width / 4;
  std::vector<GgufTensor> tensors;
  const auto add = [&](std::string name, std::vector<int64_t> shape) {
    GgufTensor& tensor = tensors.emplace_back();
    tensor.type = shape.size() > 1 ? GgmlType::kF16 : GgmlType::kF32;
    tensor.name = std::move(name);
    tensor.shape = std::move(shape);
  };
  add("token_embd.weight", {width, kVocab});
  add("output_norm.weight", {width});
  add("output.weight", {width, kVocab});
  for (int64_t i = 0; i < layers; ++i) {
    const std::string block = concat("blk.", i, '.');
    add(block + "attn_norm.weight", {width});
    add(block + "attn_q.weight", {width, width});
    add(block + "attn_k.weight", {width, key});
    add(block + "attn_v.weight", {width, key});
    add(block + "attn_output.weight", {width, width});
    add(block + "ffn_norm.weight", {width});
    add(block + "ffn_gate.weight", {width, inner});
    add(block + "ffn_up.weight", {width, inner});
    add(block + "ffn_down.weight", {inner, width});
  }
  const auto number = [](int64_t value) { return GgufValue(static_cast<uint32_t>(value)); };
  return GgufFile::layout("a llama of that size",
                          GgufMetadata({{"general.architecture", std::string("llama")},
                                        {"llama.block_count", number(layers)},
                                        {"llama.embedding_length", number(width)},
                                        {"llama.feed_forward_length", number(inner)},
                                        {"llama.attention.head_count", number(heads)},
                                        {"llama.attention.head_count_kv", number(heads / 4)}}),
                          std::move(tensors));
}

GgufFile read_layout(const cxxopts::ParseResult& arguments) {
  const bool by_size = arguments.count("params") > 0;
  if (by_size == (arguments.count("model") > 0))
    fail_usage("give either a MODEL or --params; see --help");
  if (by_size) {
    std::string text = arguments["params"].as<std::string>();
    if (text.ends_with('B')) text.back() = 'G';  // billions of weights, not bytes
    const int64_t weights = parse_size(text, "params");
    if (weights < 10'000'000) fail_usage("--params: wants 10M or more, found ", weights);
    return layout_of_size(static_cast<double>(weights));
  }
  const std::string path = find_model(arguments["model"].as<std::string>());
  if (std::filesystem::is_directory(path) || path.ends_with(".json")) return hf_layout(path);
  return GgufFile::open(path);
}

Priority priority_named(const std::string& name) {
  std::vector<std::string> names;
  for (const Priority& priority : kPriorities) {
    if (name == priority.name || (name == priority.alias && *priority.alias)) return priority;
    names.emplace_back(priority.name);
  }
  fail_usage("--priority: no '", name, "'; quality, balanced, speed or size",
             did_you_mean(name, names));
}

GgmlType kv_type_named(const std::string& name) {
  const GgmlTypeInfo* info = find_ggml_type(name);
  constexpr GgmlType kTypes[] = {GgmlType::kF32,    GgmlType::kF16,  GgmlType::kBF16,
                                 GgmlType::kQ8_0,   GgmlType::kQ4_0, GgmlType::kQ4_1,
                                 GgmlType::kIQ4_NL, GgmlType::kQ5_0, GgmlType::kQ5_1};
  if (!info || std::find(std::begin(kTypes), std::end(kTypes), info->type) == std::end(kTypes))
    fail_usage("--kv-type: llama.cpp keeps no keys and values as '", name,
               "'; f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl");
  return info->type;
}

Question read_question(const cxxopts::ParseResult& arguments) {
  Question question;
  question.serving.context = arguments["ctx"].as<int64_t>();
  if (question.serving.context < 1 || question.serving.context > (int64_t{1} << 31))
    fail_usage("--ctx wants 1 to 2^31, found ", question.serving.context);
  question.serving.kv_type = kv_type_named(arguments["kv-type"].as<std::string>());
  question.priority = priority_named(arguments["priority"].as<std::string>());
  if (arguments.count("vram") > 0) question.memory = size_argument(arguments, "vram");
  return question;
}

}  // namespace

int run_recommend(int argc, char** argv) {
  cxxopts::Options options("nibble recommend", "Which type fits a memory, and what it costs.");
  options.positional_help("[MODEL]");
  options.add_options("arguments")("model", "", cxxopts::value<std::string>());
  options.add_options()(
      "vram",
      "memory that llama.cpp may take, as 8G: a GPU's, less what its driver keeps (about 0.5G)",
      cxxopts::value<std::string>(), "SIZE");
  options.add_options()("ctx", "tokens of context",
                        cxxopts::value<int64_t>()->default_value("4096"), "N");
  options.add_options()("kv-type", "type of keys and values: f16, q8_0, ...",
                        cxxopts::value<std::string>()->default_value("f16"), "T");
  options.add_options()("priority", "quality, balanced, speed or size",
                        cxxopts::value<std::string>()->default_value("balanced"), "P");
  options.add_options()("params", "instead of a MODEL: a llama of so many weights, as 7B",
                        cxxopts::value<std::string>(), "N");
  options.add_options()("json", "one JSON object: recommended, types: [type, file_bytes, ...]");
  options.parse_positional({"model"});
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;
  const Question question = read_question(*arguments);
  const GgufFile source = read_layout(*arguments);
  const std::vector<Candidate> all = find_candidates(source, question);
  check(!all.empty(), source.path(), ": no type that nibble encodes is for this model");
  const Candidate& chosen = choose(all, question);
  if (arguments->count("json") > 0) {
    print_json(all, chosen, question);
    return 0;
  }
  print_table(all, chosen, question);
  print_advice(chosen, question, arguments->count("model") > 0 ? source.path() : "");
  return 0;
}

}  // namespace nibble
