#include "recipes/quantize_plan.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <sstream>

#include "base/error.h"
#include "io/atomic_file.h"
#include "quant/mix/file_type.h"
#include "quant/mix/tensor_types.h"
#include "recipes/arguments.h"

namespace nibble {
namespace {

constexpr RefusedFlag kRefusedFlags[] = {
    {"max-buffer-size",
     "a thread holds 65536 weights, or one row, at a time, however large the tensor is"},
};

constexpr const char* kCopy = "COPY";

/// TYPE as llama-quantize names files after it, or "" for a word that is none.
std::string canonical_type(std::string word) {
  if (const FileTypeInfo* info = find_file_type(word)) return std::string(info->name);
  std::transform(word.begin(), word.end(), word.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return word == kCopy ? word : "";
}

/// KEY=int:N, float:X, bool:true, bool:false or str:TEXT, in the types that llama-quantize writes.
std::pair<std::string, GgufValue> parse_override(const std::string& text) {
  const size_t equals = text.find('='), colon = text.find(':', std::min(equals, text.size()));
  if (equals == 0 || equals == std::string::npos || colon == std::string::npos)
    fail_usage("--override-kv: wants KEY=TYPE:VALUE, found '", text, "'");
  const std::string key = text.substr(0, equals), value = text.substr(colon + 1);
  const std::string type = text.substr(equals + 1, colon - equals - 1);
  if (type == "str") return {key, value};
  if (type == "bool" && (value == "true" || value == "false")) return {key, value == "true"};
  if (type == "int")
    if (const auto number = parse_number<uint32_t>(value)) return {key, *number};
  if (type == "float")
    if (const auto number = parse_number<double>(value);
        number && std::isfinite(static_cast<float>(*number)))
      return {key, static_cast<float>(*number)};
  fail_usage("--override-kv ", key,
             ": wants int:N with N from 0 to 4294967295, float:X, bool:true, bool:false or "
             "str:TEXT, found '",
             text.substr(equals + 1), "'");
}

std::vector<int64_t> parse_layers(const std::string& text) {
  std::vector<int64_t> layers;
  std::istringstream in(text);
  for (std::string word; std::getline(in, word, ',');) {
    const auto layer = parse_number<int64_t>(word);
    if (!layer || *layer < 0)
      fail_usage("--prune-layers: wants numbers of layers like 3,4,7, found '", word, "'");
    layers.push_back(*layer);
  }
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  return layers;
}

/// Flags that may be repeated, in the order in which they were given. They are read one by one: a
/// list option of cxxopts would cut values at their commas.
void read_repeated(const cxxopts::ParseResult& arguments, PlanOptions& options) {
  for (const cxxopts::KeyValue& argument : arguments.arguments()) {
    TensorTypes types;
    if (argument.key() == "tensor-type")
      types = with_frame("--tensor-type",
                         [&] { return TensorTypes{parse_tensor_type(argument.value())}; });
    if (argument.key() == "tensor-type-file")
      types = with_frame("--tensor-type-file", [&] { return read_tensor_types(argument.value()); });
    options.tensor_types.insert(options.tensor_types.end(), types.begin(), types.end());
    if (argument.key() == "override-kv")
      options.metadata.push_back(parse_override(argument.value()));
  }
}

std::optional<GgmlType> tensor_type_option(const cxxopts::ParseResult& arguments,
                                           const std::string& option) {
  if (!arguments.count(option)) return std::nullopt;
  return with_frame("--" + option,
                    [&] { return tensor_type_named(arguments[option].as<std::string>()); });
}

int parse_threads(const std::string& text) {
  constexpr int kMost = 1024;
  const auto threads = parse_number<int>(text);
  if (!threads || *threads > kMost)
    fail_usage("THREADS: wants a number up to ", kMost, ", found '", text, "'");
  return *threads;
}

/// Aliases are: Q4_K and Q4_K_M.
bool are_one_type(const std::string& a, const std::string& b) {
  const FileTypeInfo *first = find_file_type(a), *second = find_file_type(b);
  return first && second ? first->type == second->type : a == b;
}

/// The names in --types, as files are named after them; nothing where it is not given.
std::vector<std::string> types_of_list(const cxxopts::ParseResult& arguments, bool by_budget) {
  if (!arguments.count("types")) return {};
  if (by_budget) fail_usage("--types and a budget: give one of them");
  if (arguments.count("keep-split"))
    fail_usage(
        "--keep-split and --types: each type becomes one file; quantize to one TYPE to keep "
        "the parts");
  std::vector<std::string> types;
  std::istringstream list(arguments["types"].as<std::string>() + ',');
  for (std::string word; std::getline(list, word, ',');) {
    const std::string type = canonical_type(word);
    if (type.empty())
      fail_usage("--types: unknown type '", word, "'", did_you_mean(word, plan_type_names()));
    for (const std::string& other : types)
      if (are_one_type(other, type))
        fail_usage("--types: '", word, "' is in the list already, as '", other, "'");
    types.push_back(type);
  }
  return types;
}

}  // namespace

void add_plan_options(cxxopts::Options& options) {
  const auto text = [] { return cxxopts::value<std::string>(); };
  cxxopts::OptionAdder add = options.add_options();
  add("pure", "give every tensor that is quantized TYPE itself, the output too");
  add("leave-output-tensor", "keep output.weight as it is");
  add("output-tensor-type", "type of output.weight", text(), "T");
  add("token-embedding-type", "type of token_embd.weight", text(), "T");
  add("tensor-type",
      "type of the tensors whose name has NAME (a regular expression) in it; may be repeated",
      text(), "NAME=T");
  add("tensor-type-file", "a file of such, separated by spaces or newlines", text(), "FILE");
  add("prune-layers", "leave these layers out; later ones move up", text(), "N,N,...");
  add("keep-split", "write as many files as the source has, OUT-00001-of-0000N.gguf");
  add("override-kv",
      "metadata in the place of the source's (int, float, bool, str); may be repeated", text(),
      "KEY=TYPE:VALUE");
  add("allow-requantize", "also convert tensors that are quantized already: they lose twice");
  cxxopts::OptionAdder add_refused = options.add_options("Refused");
  for (const RefusedFlag& flag : kRefusedFlags) add_refused(flag.name, "", text());
}

void add_quantize_words(cxxopts::Options& options) {
  options.add_options()("types",
                        "several TYPEs, in one pass over IN.gguf, each to OUT_DIR/NAME-TYPE.gguf; "
                        "NAME is IN's, without its own type",
                        cxxopts::value<std::string>(), "T,T,...");
  cxxopts::OptionAdder add = options.add_options("Words");
  for (const char* name : {"first", "second", "third", "fourth"})
    add(name, "", cxxopts::value<std::string>());
  options.parse_positional({"first", "second", "third", "fourth"});
}

QuantizeWords quantize_words(const cxxopts::ParseResult& arguments, bool by_budget) {
  const std::vector<std::string> types = types_of_list(arguments, by_budget);
  const std::string instead = by_budget ? "a budget" : types.empty() ? "" : "--types";
  std::vector<std::string> words;
  for (const char* name : {"first", "second", "third", "fourth"})
    if (arguments.count(name)) words.push_back(arguments[name].as<std::string>());
  if (words.empty()) fail_usage("no IN.gguf given; see --help");
  const bool has_out = words.size() > 1 && canonical_type(words[1]).empty();
  const size_t type_at = has_out ? 2 : 1;
  if (!instead.empty() && !has_out)
    fail_usage("no ", by_budget ? "OUT.gguf" : "OUT_DIR", " given; see --help");
  // Where no TYPE can stand, a number is THREADS.
  const bool has_type =
      words.size() > type_at && (instead.empty() || (!canonical_type(words[type_at]).empty() &&
                                                     !parse_number<int>(words[type_at])));
  if (!instead.empty() && has_type)
    fail_usage("TYPE '", words[type_at], "' and ", instead, ": give one of them");
  if (instead.empty() && !has_type)
    fail_usage("no TYPE given", has_out ? did_you_mean(words[1], plan_type_names()) : "",
               "; see --help");
  QuantizeWords result;
  result.in = words[0];
  const size_t threads_at = type_at + has_type;
  if (words.size() > threads_at + 1) fail_usage("argument '", words.back(), "' is one too many");
  if (words.size() > threads_at) result.threads = parse_threads(words[threads_at]);
  if (!types.empty()) {
    result.folder = words[1];
    const auto start = std::filesystem::path(result.folder) / (model_name(result.in) + '-');
    for (const std::string& type : types)
      result.files.push_back({type, start.string() + type + ".gguf"});
    return result;
  }
  const std::string type = has_type ? words[type_at] : "";
  const std::string beside = "ggml-model-" + canonical_type(type) + ".gguf";
  result.files.push_back(
      {type,
       has_out ? words[1] : std::filesystem::path(result.in).replace_filename(beside).string()});
  return result;
}

PlanOptions plan_options(const cxxopts::ParseResult& arguments) {
  for (const RefusedFlag& flag : kRefusedFlags)
    if (arguments.count(flag.name)) fail_usage("--", flag.name, " is refused: ", flag.reason);
  PlanOptions options;
  options.pure = arguments.count("pure");
  options.allow_requantize = arguments.count("allow-requantize");
  options.leave_output_tensor = arguments.count("leave-output-tensor");
  options.keep_split = arguments.count("keep-split");
  options.output_type = tensor_type_option(arguments, "output-tensor-type");
  options.token_embedding_type = tensor_type_option(arguments, "token-embedding-type");
  if (arguments.count("prune-layers"))
    options.pruned_layers = parse_layers(arguments["prune-layers"].as<std::string>());
  read_repeated(arguments, options);
  return options;
}

}  // namespace nibble
