// Fields of the JSON files about tensors (plan.json, sensitivities), read as if hostile: errors say
// what was wanted and what was found.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/ggml_type.h"

namespace nibble {

/// Throws Error, with the byte, for text that is no JSON.
nlohmann::ordered_json parse_json(const std::string& text);

template <class T>
T get(const nlohmann::ordered_json& object, const char* key) {
  check(object.is_object(), "wants an object, found ", object.type_name());
  const auto found = object.find(key);
  check(found != object.end(), "has no '", key, "'");
  try {
    return found->template get<T>();
  } catch (const nlohmann::json::exception&) {
    fail("'", key, "' is of the wrong type, ", found->type_name());
  }
}

/// A tensor type by its name.
GgmlType get_type(const nlohmann::ordered_json& object, const char* key);
/// "shape": at most 4 dimensions, whose product of bytes does not overflow.
std::vector<int64_t> get_shape(const nlohmann::ordered_json& object);

}  // namespace nibble
