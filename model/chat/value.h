// What an expression of a chat template evaluates to, with Python's meaning of truth, equality,
// text and JSON.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace nibble::jinja {

class Value;
using List = std::vector<Value>;
/// In order of insertion, as Python keeps it.
using Dict = std::vector<std::pair<std::string, Value>>;

/// What stands in parentheses after a name.
struct Arguments {
  List positional;
  Dict named;
};
using Function = std::function<Value(const Arguments&)>;

/// A name that has no value: prints as nothing and is false, but has no attributes.
struct Undefined {
  std::string name;
};
struct None {};
/// What the filter `safe` makes: prints as the text. Jinja escapes what is added to it with "+",
/// which is refused here.
struct SafeText {
  std::string text;
};
/// namespace(...): the one thing whose attributes a template can set.
struct Namespace {
  Dict members;
};

/// Lists, dictionaries and functions are shared and never change once made.
class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(Undefined undefined) : data_(std::move(undefined)) {}
  Value(None) : data_(None{}) {}
  Value(SafeText safe) : data_(std::move(safe)) {}
  Value(bool value) : data_(value) {}
  Value(int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  Value(std::string value) : data_(std::move(value)) {}
  Value(const char* value) : data_(std::string(value)) {}
  Value(List items) : data_(std::make_shared<const List>(std::move(items))) {}
  Value(Dict entries) : data_(std::make_shared<const Dict>(std::move(entries))) {}
  Value(Function function) : data_(std::make_shared<const Function>(std::move(function))) {}
  Value(Namespace space) : data_(std::make_shared<Namespace>(std::move(space))) {}

  static Value from_json(const nlohmann::ordered_json& json);

  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
  bool is_bool() const { return is<bool>(); }
  bool is_int() const { return is<int64_t>(); }
  bool is_float() const { return is<double>(); }
  /// As Python counts: True and False are integers.
  bool is_number() const { return is_bool() || is_int() || is_float(); }
  bool is_string() const { return is<std::string>(); }
  bool is_safe() const { return is<SafeText>(); }
  bool is_list() const { return is<std::shared_ptr<const List>>(); }
  bool is_dict() const { return is<std::shared_ptr<const Dict>>(); }
  bool is_function() const { return is<std::shared_ptr<const Function>>(); }
  bool is_namespace() const { return is<std::shared_ptr<Namespace>>(); }

  const Undefined& undefined() const { return std::get<Undefined>(data_); }
  const std::string& string() const { return std::get<std::string>(data_); }
  const List& list() const { return *std::get<std::shared_ptr<const List>>(data_); }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(data_); }
  const Function& function() const { return *std::get<std::shared_ptr<const Function>>(data_); }
  Namespace& space() const { return *std::get<std::shared_ptr<Namespace>>(data_); }
  /// Of a bool or an int; of any number.
  int64_t integer() const { return is_bool() ? std::get<bool>(data_) : std::get<int64_t>(data_); }
  double number() const {
    return is_float() ? std::get<double>(data_) : static_cast<double>(integer());
  }

  /// "string", "dict": for messages.
  const char* type_name() const;
  bool truth() const;
  /// str(value): strings as they are, None as "None".
  std::string text() const;
  /// json.dumps(value, ensure_ascii=ascii, indent=indent); indent -1: on one line, with ", " and
  /// ": ".
  std::string json(int64_t indent = -1, bool ascii = false) const;
  /// Members of a dictionary or namespace; nullptr: none of that name.
  const Value* member(const std::string& name) const;

 private:
  template <class T>
  bool is() const {
    return std::holds_alternative<T>(data_);
  }
  std::variant<Undefined, None, bool, int64_t, double, std::string, SafeText,
               std::shared_ptr<const List>, std::shared_ptr<const Dict>,
               std::shared_ptr<const Function>, std::shared_ptr<Namespace>>
      data_;
};

/// Python's ==; of values of different kinds false.
bool equal(const Value& a, const Value& b);
/// Python's <, for numbers, strings and lists. Throws Error for others.
bool less(const Value& a, const Value& b);
/// What a loop over the value sees: items of a list, keys of a dictionary, characters of a string;
/// nothing of what is undefined. Throws Error for others.
List items_of(const Value& value);
/// Sets or replaces.
void set_member(Dict& members, const std::string& name, Value value);

/// The characters (code points) of a text, each as its UTF-8 bytes; a byte that is no UTF-8 is one
/// by itself.
std::vector<std::string> characters(const std::string& text);

}  // namespace nibble::jinja
