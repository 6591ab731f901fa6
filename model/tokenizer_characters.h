// tokenizer.ggml.precompiled_charsmap: which characters a Unigram tokenizer replaces, as
// sentencepiece compiles it (source: sentencepiece src/normalizer.cc; llama.cpp
// src/llama-vocab.cpp).
//
// Layout: u32 size in bytes of a double array; the array, of u32 units; then replacements, each
// ending with a zero byte. A unit's bits: 0-7 the byte that leads to it, with bit 31 clear; 8
// whether an entry ends here, whose value is the unit at the node's base; 9 and 10-30 the offset of
// the base from the node, by exclusive or (bit 9: times 256). A value is an offset into the
// replacements. Little-endian. Read as if hostile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

class CharacterMap {
 public:
  /// Replaces nothing.
  CharacterMap() = default;
  /// Throws where sizes do not fit, or where the last replacement does not end.
  explicit CharacterMap(std::span<const uint8_t> bytes);

  struct Match {
    size_t length = 0;  // bytes of the text; 0: nothing is replaced here
    std::string_view replacement;
  };
  /// The longest entry that text starts with. Throws when the array leads out of itself.
  Match longest_prefix(std::string_view text) const;

 private:
  uint32_t unit(uint32_t index) const;
  std::string_view replacement(uint32_t offset) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

/// The map that replaces each of these texts, which are not empty and hold no zero byte. Throws
/// where there are too many for the layout.
std::string compile_character_map(const std::map<std::string, std::string>& replacements);

}  // namespace nibble
