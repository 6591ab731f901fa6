// What a GGUF file holds, as JSON and as text on a terminal, for the recipes that show it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "io/gguf.h"

namespace nibble {

using Json = nlohmann::ordered_json;

/// A metadata value; of an array its length and first elements.
Json json_of(const GgufValue& value);
/// On one line, or indented. Bytes that are not UTF-8 become U+FFFD, infinity and NaN null.
std::string text_of(const Json& json, int indent = -1);
/// A metadata value on a short line: long ones are cut.
std::string short_text(const GgufValue& value);

/// 8 bytes / weights; 0 where there are no weights.
double bits_per_weight(int64_t bytes, int64_t weights);
/// part / whole; 0 where the whole is 0.
double share(int64_t part, int64_t whole);
/// "576 x 1536".
std::string shape_text(const GgufTensor& tensor);
/// The name of every tensor, for the nearest one to a wrong name.
std::vector<std::string> tensor_names(const GgufFile& file);

}  // namespace nibble
