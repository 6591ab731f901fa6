#include <algorithm>
#include <limits>
#include <type_traits>

#include "base/error.h"
#include "io/gguf.h"

namespace nibble {
namespace {

/// Throws: `value` is of another type than the caller can use.
[[noreturn]] void fail_type(std::string_view key, std::string_view wanted, const GgufValue& value) {
  const GgufArray* array = std::get_if<GgufArray>(&value);
  fail("metadata key '", key, "': wants ", wanted, ", found ", array ? "array of " : "",
       value_type_name(array ? array->type : value_type(value)));
}

template <class T>
constexpr bool kIsInteger = std::is_integral_v<T> && !std::is_same_v<T, bool>;

int64_t to_int(std::string_view key, const GgufValue& value) {
  return std::visit(
      [&](const auto& x) -> int64_t {
        using T = std::decay_t<decltype(x)>;
        if constexpr (kIsInteger<T>) {
          check(std::in_range<int64_t>(x), "metadata key '", key, "': ", x,
                " does not fit 63 bits");
          return static_cast<int64_t>(x);
        } else {
          fail_type(key, "an integer", value);
        }
      },
      value);
}

double to_float(std::string_view key, const GgufValue& value) {
  if (const float* x = std::get_if<float>(&value)) return *x;
  if (const double* x = std::get_if<double>(&value)) return *x;
  if (std::holds_alternative<std::string>(value) || std::holds_alternative<GgufArray>(value) ||
      std::holds_alternative<bool>(value))
    fail_type(key, "a number", value);
  return static_cast<double>(to_int(key, value));
}

template <class T>
const T& to_exactly(std::string_view key, std::string_view wanted, const GgufValue& value) {
  if (const T* x = std::get_if<T>(&value)) return *x;
  fail_type(key, wanted, value);
}

template <class T>
const std::vector<T>& to_array_of(std::string_view key, std::string_view wanted,
                                  const GgufValue& value) {
  const GgufArray& array = to_exactly<GgufArray>(key, wanted, value);
  if (const std::vector<T>* x = std::get_if<std::vector<T>>(&array.values)) return *x;
  fail_type(key, wanted, value);
}

const GgufValue& require(const GgufMetadata& metadata, std::string_view key) {
  const GgufValue* value = metadata.find(key);
  check(value, "the metadata has no key '", key, "'");
  return *value;
}

}  // namespace

std::string_view value_type_name(GgufValueType type) {
  constexpr std::string_view kNames[] = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                         "int32",  "float32", "bool",   "string", "array",
                                         "uint64", "int64",   "float64"};
  return kNames[static_cast<size_t>(type)];
}

int64_t GgufArray::size() const {
  return std::visit([](const auto& x) { return static_cast<int64_t>(x.size()); }, values);
}

const GgufValue* GgufMetadata::find(std::string_view key) const {
  for (const auto& [name, value] : pairs_)
    if (name == key) return &value;
  return nullptr;
}

void GgufMetadata::set(std::string key, GgufValue value) {
  for (auto& [name, old] : pairs_) {
    if (name != key) continue;
    old = std::move(value);
    return;
  }
  pairs_.emplace_back(std::move(key), std::move(value));
}

void GgufMetadata::erase(std::string_view key) {
  std::erase_if(pairs_, [&](const auto& pair) { return pair.first == key; });
}

int64_t GgufMetadata::get_int(std::string_view key) const {
  return to_int(key, require(*this, key));
}

int64_t GgufMetadata::get_int_or(std::string_view key, int64_t otherwise) const {
  const GgufValue* value = find(key);
  return value ? to_int(key, *value) : otherwise;
}

double GgufMetadata::get_float(std::string_view key) const {
  return to_float(key, require(*this, key));
}

double GgufMetadata::get_float_or(std::string_view key, double otherwise) const {
  const GgufValue* value = find(key);
  return value ? to_float(key, *value) : otherwise;
}

bool GgufMetadata::get_bool_or(std::string_view key, bool otherwise) const {
  const GgufValue* value = find(key);
  return value ? to_exactly<bool>(key, "a bool", *value) : otherwise;
}

const std::string& GgufMetadata::get_string(std::string_view key) const {
  return to_exactly<std::string>(key, "a string", require(*this, key));
}

std::string GgufMetadata::get_string_or(std::string_view key, std::string otherwise) const {
  const GgufValue* value = find(key);
  return value ? to_exactly<std::string>(key, "a string", *value) : otherwise;
}

const std::vector<std::string>& GgufMetadata::get_strings(std::string_view key) const {
  return to_array_of<std::string>(key, "an array of strings", require(*this, key));
}

const std::vector<float>& GgufMetadata::get_floats(std::string_view key) const {
  return to_array_of<float>(key, "an array of float32", require(*this, key));
}

std::vector<int64_t> GgufMetadata::get_ints(std::string_view key) const {
  const GgufValue& value = require(*this, key);
  const GgufArray& array = to_exactly<GgufArray>(key, "an array of integers", value);
  if (array.type == GgufValueType::kBool) fail_type(key, "an array of integers", value);
  return std::visit(
      [&](const auto& elements) {
        using T = typename std::decay_t<decltype(elements)>::value_type;
        std::vector<int64_t> ints;
        if constexpr (kIsInteger<T>) {
          ints.reserve(elements.size());
          for (const T x : elements) ints.push_back(to_int(key, x));
        } else {
          fail_type(key, "an array of integers", value);
        }
        return ints;
      },
      array.values);
}

}  // namespace nibble
