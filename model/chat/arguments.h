// Arguments of a filter, test, method or function by the names that Python has for them.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "model/chat/value.h"

namespace nibble::jinja {

/// Takes arguments by place or name; what is given and not taken is refused. Both must outlive it.
class ArgumentReader {
 public:
  ArgumentReader(std::string_view function, const Arguments& arguments,
                 std::vector<std::string> names)
      : function_(function), names_(std::move(names)), values_(names_.size(), nullptr) {
    check(arguments.positional.size() <= names_.size(), function_, " takes ", names_.size(),
          " arguments here, found ", arguments.positional.size());
    for (size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
    for (const auto& [name, value] : arguments.named) {
      const auto found = std::find(names_.begin(), names_.end(), name);
      check(found != names_.end(), function_, " has no argument '", name, "' here");
      values_[static_cast<size_t>(found - names_.begin())] = &value;
    }
  }

  ArgumentReader(std::string_view, Arguments&&, std::vector<std::string>) = delete;

  bool has(size_t i) const { return values_[i] && !values_[i]->is_none(); }
  const Value& value(size_t i) const {
    check(values_[i], function_, " wants its argument '", names_[i], "'");
    return *values_[i];
  }
  const std::string& string(size_t i) const {
    check(value(i).is_string(), function_, ": ", names_[i], " wants a string, found ",
          value(i).type_name());
    return value(i).string();
  }
  int64_t integer(size_t i, int64_t otherwise) const {
    if (!has(i)) return otherwise;
    check(value(i).is_int() || value(i).is_bool(), function_, ": ", names_[i],
          " wants an integer, found ", value(i).type_name());
    return value(i).integer();
  }
  bool flag(size_t i, bool otherwise) const { return has(i) ? value(i).truth() : otherwise; }

 private:
  std::string_view function_;
  std::vector<std::string> names_;
  std::vector<const Value*> values_;
};

}  // namespace nibble::jinja
