// Python's functions of a text, by code points.
#pragma once

#include <optional>
#include <string>

#include "model/chat/value.h"

namespace nibble::jinja {

/// str.strip(characters): of whitespace where characters is absent.
std::string strip(const std::string& text, const std::optional<std::string>& of, bool left,
                  bool right);
/// str.split(separator, count) and str.rsplit: by runs of whitespace where separator is absent;
/// count -1: all.
List split(const std::string& text, const std::optional<std::string>& separator, int64_t count,
           bool from_right);
/// str.replace(from, to, count); count -1: all.
std::string replace(const std::string& text, const std::string& from, const std::string& to,
                    int64_t count);
/// Only of ASCII letters; Error for others that have a case or may have one.
std::string lower(const std::string& text);
std::string upper(const std::string& text);
/// First letter large, others small; of every word.
std::string capitalize(const std::string& text);
std::string title(const std::string& text);

}  // namespace nibble::jinja
