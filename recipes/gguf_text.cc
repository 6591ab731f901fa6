#include "recipes/gguf_text.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <type_traits>
#include <variant>

#include "base/error.h"

namespace nibble {
namespace {

constexpr int64_t kShownElements = 4;
constexpr size_t kShownCharacters = 72;

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

}  // namespace

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

std::string text_of(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

std::string short_text(const GgufValue& value) {
  const auto* array = std::get_if<GgufArray>(&value);
  std::string text =
      array == nullptr
          ? text_of(json_of(value))
          : concat(array->size(), " elements: ", text_of(json_of_array(*array)["first"]));
  if (text.size() <= kShownCharacters) return text;
  size_t end = kShownCharacters;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // whole UTF-8
  return text.substr(0, end) + "...";
}

double bits_per_weight(int64_t bytes, int64_t weights) {
  return weights == 0 ? 0.0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
}

double share(int64_t part, int64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

std::string shape_text(const GgufTensor& tensor) {
  std::string text;
  for (const int64_t size : tensor.shape) text += concat(text.empty() ? "" : " x ", size);
  return text;
}

std::vector<std::string> tensor_names(const GgufFile& file) {
  std::vector<std::string> names;
  for (const GgufTensor& tensor : file.tensors()) names.push_back(tensor.name);
  return names;
}

}  // namespace nibble
