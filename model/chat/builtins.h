// The names that every chat template can use: filters, tests, methods of strings and dictionaries,
// and functions.
#pragma once

#include <string>

#include "model/chat/nodes.h"

namespace nibble::jinja {

/// value | name(arguments). Throws Error for a filter that is not known, and for arguments that it
/// does not take.
Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments);
/// value is name(arguments)
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments);
/// object.name, where the object's type has a method of that name; else undefined.
Value find_method(const Value& object, const std::string& name);
/// range, namespace, dict, raise_exception, strftime_now; else undefined.
Value find_global(const std::string& name);

/// As Python's indices: from the end where negative, at most `size`, at least `least`.
int64_t clamp_index(int64_t index, int64_t size, int64_t least = 0);

}  // namespace nibble::jinja
