// Text as sentencepiece's tokenizers have it: U+2581 in the place of each space.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

inline constexpr std::string_view kSpaceMark = "▁";  // U+2581

/// Bytes of the character that a byte begins, by its high bits alone: llama.cpp's rule, under which
/// a stray continuation byte is a character of its own and a truncated character takes what
/// follows.
size_t character_length(char first);

/// Spaces to marks, and back.
std::string escape_spaces(std::string_view text);
std::string unescape_spaces(std::string_view text);

/// Whether a mark follows another character.
bool has_inner_space(std::string_view text);

/// Cuts escaped text before each mark that follows another character. Views into `text`, which is
/// not empty.
std::vector<std::string_view> split_at_spaces(std::string_view text);

}  // namespace nibble
