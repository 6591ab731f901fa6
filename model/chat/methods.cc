#include <ctime>
#include <map>

#include "base/error.h"
#include "model/chat/arguments.h"
#include "model/chat/builtins.h"
#include "model/chat/text_functions.h"

namespace nibble::jinja {
namespace {

using TextMethod = Value (*)(const std::string& text, const Arguments& arguments);
using DictMethod = Value (*)(const Value& dict, const Arguments& arguments);

std::optional<std::string> optional_string(const ArgumentReader& reader, size_t i) {
  return reader.has(i) ? std::optional(reader.string(i)) : std::nullopt;
}

template <bool kLeft, bool kRight>
Value strip_method(const std::string& text, const Arguments& arguments) {
  return strip(text, optional_string({"strip()", arguments, {"chars"}}, 0), kLeft, kRight);
}

template <bool kFromRight>
Value split_method(const std::string& text, const Arguments& arguments) {
  const ArgumentReader reader("split()", arguments, {"sep", "maxsplit"});
  return split(text, optional_string(reader, 0), reader.integer(1, -1), kFromRight);
}

/// startswith() and endswith() take a text or a list of them.
template <bool kAtEnd>
Value affix_method(const std::string& text, const Arguments& arguments) {
  const ArgumentReader reader(kAtEnd ? "endswith()" : "startswith()", arguments, {"prefix"});
  const auto fits = [&](const Value& affix) {
    check(affix.is_string(), "startswith() and endswith() want strings, found ", affix.type_name());
    return kAtEnd ? text.ends_with(affix.string()) : text.starts_with(affix.string());
  };
  const Value& affix = reader.value(0);
  if (!affix.is_list()) return fits(affix);
  return std::any_of(affix.list().begin(), affix.list().end(), fits);
}

template <std::string (*kFunction)(const std::string&)>
Value case_method(const std::string& text, const Arguments& arguments) {
  const ArgumentReader reader("this method", arguments, {});
  return kFunction(text);
}

Value replace_method(const std::string& text, const Arguments& arguments) {
  const ArgumentReader reader("replace()", arguments, {"old", "new", "count"});
  return replace(text, reader.string(0), reader.string(1), reader.integer(2, -1));
}

Value find_text(const std::string& text, const Arguments& arguments) {
  const ArgumentReader reader("find()", arguments, {"sub"});
  const size_t at = text.find(reader.string(0));
  if (at == std::string::npos) return int64_t{-1};
  return static_cast<int64_t>(characters(text.substr(0, at)).size());
}

Value count_text(const std::string& text, const Arguments& arguments) {
  const ArgumentReader reader("count()", arguments, {"sub"});
  return static_cast<int64_t>(split(text, reader.string(0), -1, false).size()) - 1;
}

Value join_method(const std::string& text, const Arguments& arguments) {
  const ArgumentReader reader("join()", arguments, {"iterable"});
  std::string out;
  bool first = true;
  for (const Value& item : items_of(reader.value(0))) {
    check(item.is_string(), "join() wants strings, found ", item.type_name());
    out += (first ? "" : text) + item.string();
    first = false;
  }
  return out;
}

const std::map<std::string, TextMethod, std::less<>> kTextMethods = {
    {"strip", strip_method<true, true>},
    {"lstrip", strip_method<true, false>},
    {"rstrip", strip_method<false, true>},
    {"split", split_method<false>},
    {"rsplit", split_method<true>},
    {"startswith", affix_method<false>},
    {"endswith", affix_method<true>},
    {"upper", case_method<upper>},
    {"lower", case_method<lower>},
    {"title", case_method<title>},
    {"capitalize", case_method<capitalize>},
    {"replace", replace_method},
    {"find", find_text},
    {"count", count_text},
    {"join", join_method},
};

Value entries(const Value& dict, const Arguments& arguments) {
  const ArgumentReader reader("items()", arguments, {});
  List pairs;
  for (const auto& [key, value] : dict.dict()) pairs.emplace_back(List{key, value});
  return pairs;
}

Value keys(const Value& dict, const Arguments& arguments) {
  const ArgumentReader reader("keys()", arguments, {});
  return items_of(dict);
}

Value values(const Value& dict, const Arguments& arguments) {
  const ArgumentReader reader("values()", arguments, {});
  List all;
  for (const auto& [key, value] : dict.dict()) all.push_back(value);
  return all;
}

Value get(const Value& dict, const Arguments& arguments) {
  const ArgumentReader reader("get()", arguments, {"key", "default"});
  const Value& key = reader.value(0);
  const Value* found = key.is_string() ? dict.member(key.string()) : nullptr;
  if (found) return *found;
  return reader.has(1) ? reader.value(1) : None{};
}

const std::map<std::string, DictMethod, std::less<>> kDictMethods = {
    {"items", entries}, {"keys", keys}, {"values", values}, {"get", get}};

/// As many as Jinja's sandbox allows.
constexpr int64_t kMaxRange = 100'000;

Value range(const Arguments& arguments) {
  ArgumentReader reader("range()", arguments, {"start", "stop", "step"});
  const bool one = arguments.positional.size() == 1;
  const int64_t start = one ? 0 : reader.integer(0, 0), step = reader.integer(2, 1);
  const int64_t stop = one ? reader.integer(0, 0) : reader.integer(1, 0);
  check(step != 0, "range(): the step is 0");
  List numbers;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    numbers.emplace_back(i);
    check(static_cast<int64_t>(numbers.size()) <= kMaxRange, "range(): more than ", kMaxRange,
          " numbers");
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return numbers;
}

Value make_namespace(const Arguments& arguments) {
  check(arguments.positional.empty(), "namespace() takes names with values");
  return Namespace{arguments.named};
}

Value make_dict(const Arguments& arguments) {
  check(arguments.positional.empty(), "dict() takes names with values");
  return arguments.named;
}

Value raise_exception(const Arguments& arguments) {
  const ArgumentReader reader("raise_exception()", arguments, {"message"});
  fail("the template refuses the conversation: ", reader.value(0).text());
}

Value strftime_now(const Arguments& arguments) {
  const ArgumentReader reader("strftime_now()", arguments, {"format"});
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char buffer[256];
  return std::string(buffer,
                     std::strftime(buffer, sizeof buffer, reader.string(0).c_str(), &local));
}

const std::map<std::string, Value (*)(const Arguments&), std::less<>> kGlobals = {
    {"range", range},
    {"namespace", make_namespace},
    {"dict", make_dict},
    {"raise_exception", raise_exception},
    {"strftime_now", strftime_now},
};

}  // namespace

Value find_method(const Value& object, const std::string& name) {
  if (object.is_string())
    if (const auto found = kTextMethods.find(name); found != kTextMethods.end())
      return Function([text = object.string(), method = found->second](const Arguments& arguments) {
        return method(text, arguments);
      });
  if (object.is_dict())
    if (const auto found = kDictMethods.find(name); found != kDictMethods.end())
      return Function([object, method = found->second](const Arguments& arguments) {
        return method(object, arguments);
      });
  return {};
}

Value find_global(const std::string& name) {
  const auto found = kGlobals.find(name);
  return found == kGlobals.end() ? Value() : Value(Function(found->second));
}

int64_t clamp_index(int64_t index, int64_t size, int64_t least) {
  return std::clamp(index < 0 ? index + size : index, least, std::max(size, least));
}

}  // namespace nibble::jinja
