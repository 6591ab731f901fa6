#include "model/hf/json_fields.h"

#include <cmath>
#include <filesystem>
#include <limits>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/json.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

// A tokenizer.json of 262144 tokens has 33 MB; read whole, a JSON text takes some ten times its
// size.
constexpr uint64_t kMaxBytes = 256'000'000;
// tokenizer.json: post_processor > processors > single > SpecialToken, and some room.
constexpr int kMaxNesting = 32;

[[noreturn]] void fail_type(const char* key, const char* wanted, const Json& found) {
  fail("key '", key, "': wants ", wanted, ", found ", found.type_name());
}

}  // namespace

std::optional<Json> read_json_file(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::nullopt;
  return with_frame(path, [&]() -> std::optional<Json> {
    const uint64_t bytes = std::filesystem::file_size(path, error);
    check(!error, "cannot read: ", error.message());
    check(bytes <= kMaxBytes, "has ", bytes, " bytes, at most ", kMaxBytes, " are allowed");
    return parse_json_object(read_file(path), "the file", kMaxNesting);
  });
}

const Json* find_field(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::optional<int64_t> int_field(const Json& object, const char* key) {
  const Json* value = find_field(object, key);
  if (!value) return std::nullopt;
  if (!value->is_number_integer()) fail_type(key, "an integer", *value);
  using Limits = std::numeric_limits<int32_t>;
  const bool fits = value->is_number_unsigned() ? value->get<uint64_t>() <= uint64_t{Limits::max()}
                                                : value->get<int64_t>() >= Limits::min();
  check(fits, "key '", key, "': ", value->dump(), " does not fit 32 bits");
  return value->get<int64_t>();
}

int64_t count_field(const Json& object, const char* key) {
  const std::optional<int64_t> count = int_field(object, key);
  check(count.has_value(), "has no '", key, "'");
  check(*count > 0, "key '", key, "' must be positive, is ", *count);
  return *count;
}

std::optional<double> number_field(const Json& object, const char* key) {
  const Json* value = find_field(object, key);
  if (!value) return std::nullopt;
  if (!value->is_number()) fail_type(key, "a number", *value);
  check(std::isfinite(value->get<double>()), "key '", key, "': wants a finite number");
  return value->get<double>();
}

std::optional<bool> bool_field(const Json& object, const char* key) {
  const Json* value = find_field(object, key);
  if (!value) return std::nullopt;
  if (!value->is_boolean()) fail_type(key, "true or false", *value);
  return value->get<bool>();
}

std::optional<std::string> text_field(const Json& object, const char* key) {
  const Json* value = find_field(object, key);
  if (!value) return std::nullopt;
  if (!value->is_string()) fail_type(key, "a string", *value);
  return value->get<std::string>();
}

const Json* object_field(const Json& object, const char* key) {
  const Json* value = find_field(object, key);
  if (value && !value->is_object()) fail_type(key, "an object", *value);
  return value;
}

const Json* array_field(const Json& object, const char* key) {
  const Json* value = find_field(object, key);
  if (value && !value->is_array()) fail_type(key, "an array", *value);
  return value;
}

std::vector<Json> steps_of(const Json& step, const char* key) {
  check(step.is_object(), "key '", key, "': holds a JSON ", step.type_name(), ", not an object");
  if (text_field(step, "type") != "Sequence") return {step};
  const Json* parts = array_field(step, key);
  check(parts, "'Sequence' has no '", key, "'");
  std::vector<Json> steps;
  for (const Json& part : *parts)
    for (Json& inner : steps_of(part, key)) steps.push_back(std::move(inner));
  return steps;
}

}  // namespace nibble
