// nibble inspect: what a GGUF file holds: metadata, tensors, types, bits per weight, bytes per
// type.
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "io/gguf.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kExamples =
    "\nOf long metadata arrays the length and the first elements are shown; --json gives the "
    "same.\n"
    "\nexamples:\n"
    "  nibble inspect model.gguf                            everything, for a person\n"
    "  nibble inspect model.gguf --tensor blk.0.attn_q.weight\n"
    "  nibble inspect model.gguf --json | jq .types         bytes per type\n";
constexpr int64_t kShownElements = 4;
constexpr size_t kShownCharacters = 72;

// What tensors of one type amount to.
struct TypeSummary {
  int64_t tensors = 0, weights = 0, bytes = 0;
};

double bits_per_weight(int64_t bytes, int64_t weights) {
  return weights == 0 ? 0.0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
}

Json json_of_array(const GgufArray& array) {
  Json head = Json::array();
  std::visit(
      [&](const auto& values) {
        const auto shown = std::min<int64_t>(kShownElements, array.size());
        for (int64_t i = 0; i < shown; ++i) head.push_back(values[i]);
      },
      array.values);
  return {{"length", array.size()}, {"first", head}};
}

// 1e-05f as 1e-05, not as the double 9.999999747378752e-06: the same float, readable.
double shortest(float value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  return std::strtod(std::string(text, end).c_str(), nullptr);
}

Json json_of(const GgufValue& value) {
  return std::visit(
      [](const auto& each) -> Json {
        using Type = std::decay_t<decltype(each)>;
        if constexpr (std::is_same_v<Type, GgufArray>)
          return json_of_array(each);
        else if constexpr (std::is_same_v<Type, float>)
          return shortest(each);
        else
          return each;
      },
      value);
}

// JSON on one line; bytes that are not UTF-8 become U+FFFD.
std::string text_of(const Json& json, int indent = -1) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

Json json_of(const GgufTensor& tensor) {
  const auto bytes = static_cast<int64_t>(tensor.data.size());
  Json json = {{"name", tensor.name},
               {"type", type_name(tensor.type)},
               {"shape", tensor.shape},
               {"weights", tensor.num_weights()},
               {"bytes", bytes},
               {"bpw", bits_per_weight(bytes, tensor.num_weights())},
               {"offset", tensor.file_offset}};
  if (tensor.part > 0) json["part"] = tensor.part;
  return json;
}

std::map<GgmlType, TypeSummary> summarize(const GgufFile& file) {
  std::map<GgmlType, TypeSummary> types;
  for (const GgufTensor& tensor : file.tensors()) {
    TypeSummary& type = types[tensor.type];
    type.tensors += 1;
    type.weights += tensor.num_weights();
    type.bytes += static_cast<int64_t>(tensor.data.size());
  }
  return types;
}

TypeSummary total_of(const std::map<GgmlType, TypeSummary>& types) {
  TypeSummary total;
  for (const auto& [type, summary] : types) {
    total.tensors += summary.tensors;
    total.weights += summary.weights;
    total.bytes += summary.bytes;
  }
  return total;
}

double share(int64_t part, int64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

Json json_of(const GgufFile& file) {
  const auto types = summarize(file);
  const TypeSummary total = total_of(types);
  Json json = {{"path", file.path()},        {"version", file.version()},
               {"bytes", file.file_bytes()}, {"tensor_bytes", total.bytes},
               {"weights", total.weights},   {"bpw", bits_per_weight(total.bytes, total.weights)}};
  json["types"] = Json::array();
  for (const auto& [type, summary] : types)
    json["types"].push_back({{"type", type_name(type)},
                             {"tensors", summary.tensors},
                             {"weights", summary.weights},
                             {"bytes", summary.bytes},
                             {"share", share(summary.bytes, total.bytes)}});
  json["metadata"] = Json::object();
  for (const auto& [key, value] : file.metadata().pairs()) json["metadata"][key] = json_of(value);
  json["tensors"] = Json::array();
  for (const GgufTensor& tensor : file.tensors()) json["tensors"].push_back(json_of(tensor));
  return json;
}

std::string shape_text(const GgufTensor& tensor) {
  std::string text;
  for (const int64_t size : tensor.shape) text += concat(text.empty() ? "" : " x ", size);
  return text;
}

void print_metadata(const GgufFile& file) {
  for (const auto& [key, value] : file.metadata().pairs()) {
    const auto* array = std::get_if<GgufArray>(&value);
    std::string text =
        array == nullptr
            ? text_of(json_of(value))
            : concat(array->size(), " elements: ", text_of(json_of_array(*array)["first"]));
    if (text.size() > kShownCharacters) {
      size_t end = kShownCharacters;
      while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80)
        --end;  // whole UTF-8
      text = text.substr(0, end) + "...";
    }
    std::printf("  %-42s %s\n", key.c_str(), text.c_str());
  }
}

void print_tensor(const GgufTensor& tensor) {
  const auto bytes = static_cast<int64_t>(tensor.data.size());
  std::printf("  %-36s %-8s %-18s %12s %7.3f\n", tensor.name.c_str(),
              std::string(type_name(tensor.type)).c_str(), shape_text(tensor).c_str(),
              format_bytes(bytes).c_str(), bits_per_weight(bytes, tensor.num_weights()));
}

void print_file(const GgufFile& file) {
  const auto types = summarize(file);
  const TypeSummary total = total_of(types);
  std::printf("%s: GGUF v%u, %s, %lld tensors, %lld weights, %.3f bits per weight\n",
              file.path().c_str(), file.version(), format_bytes(file.file_bytes()).c_str(),
              static_cast<long long>(total.tensors), static_cast<long long>(total.weights),
              bits_per_weight(total.bytes, total.weights));
  std::printf("\nmetadata\n");
  print_metadata(file);
  std::printf("\n  %-36s %-8s %-18s %12s %7s\n", "tensor", "type", "shape", "size", "bpw");
  for (const GgufTensor& tensor : file.tensors()) print_tensor(tensor);
  std::printf("\n  %-8s %8s %16s %12s %8s\n", "type", "tensors", "weights", "size", "share");
  for (const auto& [type, summary] : types)
    std::printf("  %-8s %8lld %16lld %12s %7.1f%%\n", std::string(type_name(type)).c_str(),
                static_cast<long long>(summary.tensors), static_cast<long long>(summary.weights),
                format_bytes(summary.bytes).c_str(), 100.0 * share(summary.bytes, total.bytes));
}

const GgufTensor& find_or_fail(const GgufFile& file, const std::string& name) {
  if (const GgufTensor* tensor = file.find_tensor(name)) return *tensor;
  std::vector<std::string> names;
  for (const GgufTensor& tensor : file.tensors()) names.push_back(tensor.name);
  fail(file.path(), ": no tensor '", name, "'", did_you_mean(name, names));
}

}  // namespace

int run_inspect(int argc, char** argv) {
  cxxopts::Options options(
      "nibble inspect",
      "What a GGUF file holds: metadata, tensors, types, bits per weight, bytes per type.");
  options.positional_help("FILE.gguf");
  options.add_options("arguments")("file", "", cxxopts::value<std::string>());
  options.add_options()("tensor", "only this tensor", cxxopts::value<std::string>(), "NAME");
  options.add_options()("json", "one JSON object on stdout");
  options.parse_positional({"file"});
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;

  const bool as_json = arguments->count("json") > 0;
  const GgufFile file = GgufFile::open(required(*arguments, "file", "FILE.gguf"));
  if (arguments->count("tensor") > 0) {
    const GgufTensor& tensor = find_or_fail(file, (*arguments)["tensor"].as<std::string>());
    if (as_json)
      std::printf("%s\n", text_of(json_of(tensor), 2).c_str());
    else
      print_tensor(tensor);
  } else if (as_json) {
    std::printf("%s\n", text_of(json_of(file), 2).c_str());
  } else {
    print_file(file);
  }
  return 0;
}

}  // namespace nibble
