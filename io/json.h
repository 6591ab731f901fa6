// JSON from strangers: the headers of safetensors files, the JSON files of model folders.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

namespace nibble {

/// Parses an object. Throws for what would let a small file cost much memory (nesting deeper than
/// `max_nesting`) or mean two things (a key that comes twice, of which JSON readers keep one or the
/// other), and for what is no JSON. `what` is the text's name in messages ("header"), `first_byte`
/// where in its file it begins.
nlohmann::json parse_json_object(std::string_view text, std::string_view what, int max_nesting,
                                 uint64_t first_byte = 0);

}  // namespace nibble
