// A chat template's text -> its syntax tree: the part of Jinja that chat templates use. What is not
// part of it (include, extends, filter and call blocks, recursive loops, ...) is refused by name.
#pragma once

#include <string_view>

#include "model/chat/nodes.h"

namespace nibble::jinja {

/// Throws Error with the line.
Statements parse(std::string_view source);

}  // namespace nibble::jinja
