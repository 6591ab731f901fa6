// Bytes in a JSON text (RFC 4648).
#pragma once

#include <string>
#include <string_view>

namespace nibble {

/// With or without "=" at the end. Throws, naming the place, for other characters.
std::string decode_base64(std::string_view text);

}  // namespace nibble
