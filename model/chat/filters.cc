#include <charconv>
#include <cmath>
#include <map>

#include "base/error.h"
#include "model/chat/arguments.h"
#include "model/chat/builtins.h"
#include "model/chat/text_functions.h"

namespace nibble::jinja {
namespace {

using FilterFunction = Value (*)(const Value& value, const Arguments& arguments);

/// The value's text, as filters of texts take any value.
template <std::string (*kFunction)(const std::string&)>
Value text_filter(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("this filter", arguments, {});
  return kFunction(value.text());
}

Value trim(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("trim", arguments, {"chars"});
  return strip(value.text(), reader.has(0) ? std::optional(reader.string(0)) : std::nullopt, true,
               true);
}

Value length(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("length", arguments, {});
  return static_cast<int64_t>(items_of(value).size());
}

Value to_json(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("tojson", arguments, {"indent", "ensure_ascii"});
  const int64_t indent = reader.integer(0, -1);
  check(indent <= 64, "tojson: an indent of ", indent, " is too large");
  return value.json(indent, reader.flag(1, false));
}

Value join(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("join", arguments, {"d", "attribute"});
  const std::string between = reader.has(0) ? reader.string(0) : "";
  std::string out;
  bool first = true;
  for (const Value& item : items_of(value)) {
    const Value* part = &item;
    if (reader.has(1)) part = item.member(reader.string(1));
    out += (first ? "" : between) + (part ? part->text() : "");
    first = false;
  }
  return out;
}

Value otherwise(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("default", arguments, {"default_value", "boolean"});
  const bool missing = value.is_undefined() || (reader.flag(1, false) && !value.truth());
  if (!missing) return value;
  return arguments.positional.empty() && arguments.named.empty() ? Value("") : reader.value(0);
}

template <bool kFirst>
Value end_item(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("first and last", arguments, {});
  const List items = items_of(value);
  if (items.empty()) return Undefined{kFirst ? "first" : "last"};
  return kFirst ? items.front() : items.back();
}

Value list(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("list", arguments, {});
  return items_of(value);
}

Value reverse(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("reverse", arguments, {});
  List items = items_of(value);
  std::reverse(items.begin(), items.end());
  if (!value.is_string()) return items;
  std::string text;
  for (const Value& character : items) text += character.string();
  return text;
}

Value unique(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("unique", arguments, {});
  List kept;
  for (const Value& item : items_of(value))
    if (std::none_of(kept.begin(), kept.end(),
                     [&](const Value& other) { return equal(item, other); }))
      kept.push_back(item);
  return kept;
}

Value whole_number(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("int", arguments, {"default"});
  if (value.is_float() && std::abs(value.number()) < 9e15)
    return static_cast<int64_t>(value.number());
  if (value.is_number() && !value.is_float()) return value.integer();
  if (value.is_string()) {
    const std::string text = strip(value.string(), std::nullopt, true, true);
    int64_t number = 0;
    const auto end = std::from_chars(text.data(), text.data() + text.size(), number);
    if (end.ec == std::errc() && end.ptr == text.data() + text.size()) return number;
  }
  return reader.integer(0, 0);
}

Value real_number(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("float", arguments, {});
  if (value.is_number()) return value.number();
  const std::string text = strip(value.text(), std::nullopt, true, true);
  double number = 0;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), number);
  return end.ec == std::errc() && end.ptr == text.data() + text.size() ? number : 0.0;
}

Value absolute(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("abs", arguments, {});
  check(value.is_number(), "abs wants a number, found ", value.type_name());
  if (value.is_float()) return std::abs(value.number());
  check(value.integer() != INT64_MIN, "abs: the number is too large");
  return std::abs(value.integer());
}

Value string(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("string", arguments, {});
  return value.text();
}

Value safe(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("safe", arguments, {});
  return SafeText{value.text()};
}

Value replace_filter(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("replace", arguments, {"old", "new", "count"});
  return replace(value.text(), reader.string(0), reader.string(1), reader.integer(2, -1));
}

Value items(const Value& value, const Arguments& arguments) {
  if (value.is_undefined()) return List{};
  check(value.is_dict(), "items wants a dict, found ", value.type_name());
  return find_method(value, "items").function()(arguments);
}

Value sorted_entries(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("dictsort", arguments, {});
  List entries = items(value, {}).list();
  // By key without regard to case, as Jinja does where nothing else is asked for.
  std::stable_sort(entries.begin(), entries.end(), [](const Value& a, const Value& b) {
    return lower(a.list()[0].string()) < lower(b.list()[0].string());
  });
  return entries;
}

Value indent(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("indent", arguments, {"width", "first", "blank"});
  const int64_t width = reader.integer(0, 4);
  check(width >= 0 && width <= 1000, "indent: a width of ", width, " is none");
  const std::string margin(static_cast<size_t>(width), ' ');
  std::string out;
  bool first = true;
  for (const Value& line : split(value.text(), "\n", -1, false)) {
    const bool moves =
        first ? reader.flag(1, false) : reader.flag(2, false) || !line.string().empty();
    out += (first ? "" : "\n") + (moves ? margin : "") + line.string();
    first = false;
  }
  return out;
}

/// item.name, or item.a.b for "a.b".
Value attribute_of(const Value& item, const std::string& path) {
  Value value = item;
  for (const Value& name : split(path, ".", -1, false)) {
    const Value* member = value.member(name.string());
    if (!member) return Undefined{path};
    value = Value(*member);
  }
  return value;
}

Arguments without_first(const Arguments& arguments, size_t count) {
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin(),
                        rest.positional.begin() + static_cast<std::ptrdiff_t>(count));
  return rest;
}

const std::string& name_argument(const Arguments& arguments, size_t i, std::string_view filter) {
  check(i < arguments.positional.size() && arguments.positional[i].is_string(), filter,
        " wants a name");
  return arguments.positional[i].string();
}

Value map(const Value& value, const Arguments& arguments) {
  if (!value.truth()) return List{};
  List mapped;
  if (!arguments.named.empty()) {
    const Arguments named = {{}, arguments.named};
    const ArgumentReader reader("map", named, {"attribute", "default"});
    check(arguments.positional.empty(), "map takes a filter or an attribute");
    for (const Value& item : items_of(value)) {
      Value found = attribute_of(item, reader.string(0));
      mapped.push_back(found.is_undefined() && reader.has(1) ? reader.value(1) : std::move(found));
    }
    return mapped;
  }
  const std::string& filter = name_argument(arguments, 0, "map");
  for (const Value& item : items_of(value))
    mapped.push_back(apply_filter(filter, item, without_first(arguments, 1)));
  return mapped;
}

/// Items, or their attribute, of which a test holds (or the value itself where no test is named).
template <bool kByAttribute, bool kWanted>
Value choose(const Value& value, const Arguments& arguments) {
  constexpr size_t kNames = kByAttribute ? 1 : 0;
  const std::string attribute = kByAttribute ? name_argument(arguments, 0, "selectattr") : "";
  const bool tests = arguments.positional.size() > kNames;
  if (!value.truth()) return List{};
  List kept;
  for (const Value& item : items_of(value)) {
    const Value judged = kByAttribute ? attribute_of(item, attribute) : item;
    const bool holds = tests ? apply_test(name_argument(arguments, kNames, "select"), judged,
                                          without_first(arguments, kNames + 1))
                             : judged.truth();
    if (holds == kWanted) kept.push_back(item);
  }
  return kept;
}

template <bool kLargest>
Value extreme(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("min and max", arguments, {});
  const List all = items_of(value);
  if (all.empty()) return Undefined{"min or max of nothing"};
  return kLargest ? *std::max_element(all.begin(), all.end(), less)
                  : *std::min_element(all.begin(), all.end(), less);
}

Value sum(const Value& value, const Arguments& arguments) {
  const ArgumentReader reader("sum", arguments, {"attribute"});
  int64_t total = 0;
  for (const Value& item : items_of(value)) {
    const Value part = reader.has(0) ? attribute_of(item, reader.string(0)) : item;
    check(part.is_number() && !part.is_float(), "sum wants integers, found ", part.type_name());
    check(!__builtin_add_overflow(total, part.integer(), &total), "sum: the result is too large");
  }
  return total;
}

const std::map<std::string, FilterFunction, std::less<>> kFilters = {
    {"trim", trim},
    {"length", length},
    {"count", length},
    {"tojson", to_json},
    {"join", join},
    {"default", otherwise},
    {"d", otherwise},
    {"first", end_item<true>},
    {"last", end_item<false>},
    {"list", list},
    {"reverse", reverse},
    {"unique", unique},
    {"int", whole_number},
    {"float", real_number},
    {"abs", absolute},
    {"string", string},
    {"safe", safe},
    {"replace", replace_filter},
    {"items", items},
    {"dictsort", sorted_entries},
    {"indent", indent},
    {"map", map},
    {"select", choose<false, true>},
    {"reject", choose<false, false>},
    {"selectattr", choose<true, true>},
    {"rejectattr", choose<true, false>},
    {"min", extreme<false>},
    {"max", extreme<true>},
    {"sum", sum},
    {"upper", text_filter<upper>},
    {"lower", text_filter<lower>},
    {"title", text_filter<title>},
    {"capitalize", text_filter<capitalize>},
};

using TestFunction = bool (*)(const Value& value, const ArgumentReader& other);

struct NamedTest {
  bool compares;  // whether it takes another value
  TestFunction holds;
};

bool is_even(const Value& value) {
  check(value.is_int(), "this test wants an integer, found ", value.type_name());
  return value.integer() % 2 == 0;
}

bool is_sequence(const Value& value) {
  return value.is_list() || value.is_string() || value.is_dict();
}

bool is_in(const Value& value, const ArgumentReader& other) {
  const Value& container = other.value(0);
  if (container.is_string() && value.is_string())
    return container.string().find(value.string()) != std::string::npos;
  const List all = items_of(container);
  return std::any_of(all.begin(), all.end(), [&](const Value& item) { return equal(item, value); });
}

using Other = const ArgumentReader&;
const std::map<std::string, NamedTest, std::less<>> kTests = {
    {"defined", {false, [](const Value& v, Other) { return !v.is_undefined(); }}},
    {"undefined", {false, [](const Value& v, Other) { return v.is_undefined(); }}},
    {"none", {false, [](const Value& v, Other) { return v.is_none(); }}},
    {"string", {false, [](const Value& v, Other) { return v.is_string(); }}},
    {"mapping", {false, [](const Value& v, Other) { return v.is_dict(); }}},
    {"iterable", {false, [](const Value& v, Other) { return is_sequence(v) || v.is_undefined(); }}},
    {"sequence", {false, [](const Value& v, Other) { return is_sequence(v) || v.is_undefined(); }}},
    {"number", {false, [](const Value& v, Other) { return v.is_number(); }}},
    {"integer", {false, [](const Value& v, Other) { return v.is_int(); }}},
    {"float", {false, [](const Value& v, Other) { return v.is_float(); }}},
    {"boolean", {false, [](const Value& v, Other) { return v.is_bool(); }}},
    {"true", {false, [](const Value& v, Other) { return v.is_bool() && v.truth(); }}},
    {"false", {false, [](const Value& v, Other) { return v.is_bool() && !v.truth(); }}},
    {"callable", {false, [](const Value& v, Other) { return v.is_function(); }}},
    {"even", {false, [](const Value& v, Other) { return is_even(v); }}},
    {"odd", {false, [](const Value& v, Other) { return !is_even(v); }}},
    {"divisibleby",
     {true,
      [](const Value& v, Other other) {
        check(v.is_int() && other.integer(0, 0) != 0,
              "divisibleby wants integers, and none that is 0");
        return v.integer() % other.integer(0, 0) == 0;
      }}},
    {"equalto", {true, [](const Value& v, Other other) { return equal(v, other.value(0)); }}},
    {"eq", {true, [](const Value& v, Other other) { return equal(v, other.value(0)); }}},
    {"==", {true, [](const Value& v, Other other) { return equal(v, other.value(0)); }}},
    {"ne", {true, [](const Value& v, Other other) { return !equal(v, other.value(0)); }}},
    {"!=", {true, [](const Value& v, Other other) { return !equal(v, other.value(0)); }}},
    {"in", {true, is_in}},
};

}  // namespace

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments) {
  const auto found = kFilters.find(name);
  check(found != kFilters.end(), "a filter '", name, "' is not known to nibble's template engine");
  return found->second(value, arguments);
}

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments) {
  const auto found = kTests.find(name);
  check(found != kTests.end(), "a test '", name, "' is not known to nibble's template engine");
  const auto& [compares, holds] = found->second;
  return holds(value, ArgumentReader(name, arguments,
                                     compares ? std::vector<std::string>{"other"}
                                              : std::vector<std::string>{}));
}

}  // namespace nibble::jinja
