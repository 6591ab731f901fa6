#include "model/hf/base64.h"

#include <cstdint>

#include "base/error.h"

namespace nibble {

std::string decode_base64(std::string_view text) {
  constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  text = text.substr(0, text.find_last_not_of('=') + 1);
  std::string bytes;
  uint32_t bits = 0;
  int num_bits = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t value = kAlphabet.find(text[i]);
    check(value != std::string_view::npos, "character ", i, " is not of base64");
    bits = bits << 6 | static_cast<uint32_t>(value);
    num_bits += 6;
    if (num_bits < 8) continue;
    num_bits -= 8;
    bytes += static_cast<char>(bits >> num_bits & 0xff);
  }
  return bytes;
}

}  // namespace nibble
