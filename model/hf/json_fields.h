// Fields of the JSON files of a Hugging Face folder, read as if hostile: errors name the key, what
// was wanted and what was found. A key whose value is null counts as missing.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

/// The object that a file holds; nothing when there is no such file. Throws with the path.
std::optional<nlohmann::json> read_json_file(const std::string& path);

/// nullptr where the key is missing.
const nlohmann::json* find_field(const nlohmann::json& object, const char* key);

/// From 1 to 2^31 - 1: a product of two such sizes does not overflow int64. The field must be
/// there.
int64_t count_field(const nlohmann::json& object, const char* key);
/// Any 32-bit integer.
std::optional<int64_t> int_field(const nlohmann::json& object, const char* key);
/// A finite number.
std::optional<double> number_field(const nlohmann::json& object, const char* key);
std::optional<bool> bool_field(const nlohmann::json& object, const char* key);
std::optional<std::string> text_field(const nlohmann::json& object, const char* key);
/// Of the wanted kind, or nullptr where missing.
const nlohmann::json* object_field(const nlohmann::json& object, const char* key);
const nlohmann::json* array_field(const nlohmann::json& object, const char* key);

/// The steps of a "Sequence" of tokenizer.json, however nested, which has them under `key`; or the
/// one step that it is. Throws for what is no object.
std::vector<nlohmann::json> steps_of(const nlohmann::json& step, const char* key);

}  // namespace nibble
