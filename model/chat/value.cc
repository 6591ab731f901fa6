#include "model/chat/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>

#include "base/error.h"

namespace nibble::jinja {
namespace {

/// Python's repr of a float: the shortest digits that read back as it, with an exponent below 1e-4
/// and from 1e16.
std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  const double size = std::abs(value);
  const bool exponent = size != 0 && (size < 1e-4 || size >= 1e16);
  char buffer[400];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value,
                    exponent ? std::chars_format::scientific : std::chars_format::fixed);
  std::string text(buffer, end.ptr);
  if (!exponent && text.find('.') == std::string::npos) text += ".0";
  return text;
}

std::string hexadecimal(unsigned value, size_t digits) {
  std::string text(digits, '0');
  for (size_t i = digits; i-- > 0; value /= 16) text[i] = "0123456789abcdef"[value % 16];
  return text;
}

/// A text between quotes: each of `special` as a backslash and its name, other control characters
/// by number.
std::string escaped(const std::string& text, char quote, std::string_view special,
                    std::string_view names, const char* numbered, size_t digits) {
  std::string out(1, quote);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const size_t known = special.find(c);
    if (c == quote)
      out += {'\\', c};
    else if (known != std::string_view::npos)
      out += {'\\', names[known]};
    else if (byte < 32)
      out += numbered + hexadecimal(byte, digits);
    else
      out += c;
  }
  return out += quote;
}

/// Python's repr of a string.
std::string quoted(const std::string& text) {
  const bool doubled = text.find('\'') != std::string::npos && text.find('"') == std::string::npos;
  return escaped(text, doubled ? '"' : '\'', "\\\n\r\t", "\\nrt", "\\x", 2);
}

/// The code point of a character's UTF-8 bytes; of what is none the replacement character's.
uint32_t code_point(const std::string& character) {
  constexpr unsigned kLead[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(character[i]); };
  if (character.size() == 1 && byte(0) >= 0x80) return 0xfffd;
  uint32_t point = byte(0) & kLead[character.size()];
  for (size_t i = 1; i < character.size(); ++i) point = point << 6 | (byte(i) & 0x3f);
  return point;
}

/// Characters beyond ASCII as UTF-16 by number.
std::string in_ascii(const std::string& text) {
  std::string out;
  for (const std::string& character : characters(text)) {
    const uint32_t point = code_point(character);
    if (point < 0x7f)
      out += character;
    else if (point < 0x10000)
      out += "\\u" + hexadecimal(point, 4);
    else
      out += "\\u" + hexadecimal(0xd7c0 + (point >> 10), 4) + "\\u" +
             hexadecimal(0xdc00 + (point & 0x3ff), 4);
  }
  return out;
}

std::string json_string(const std::string& text, bool ascii) {
  const std::string quoted = escaped(text, '"', "\\\n\r\t\b\f", "\\nrtbf", "\\u", 4);
  return ascii ? in_ascii(quoted) : quoted;
}

/// How json.dumps() was asked to write.
struct JsonStyle {
  int64_t indent;
  bool ascii;
};

/// As it stands inside of a list that is printed.
std::string representation(const Value& value) {
  return value.is_string() ? quoted(value.string()) : value.text();
}

/// open item, item, ... close, on lines of their own where indent is 0 or more.
template <class Items, class Write>
std::string json_items(const char* brackets, const Items& items, int64_t indent, int64_t depth,
                       const Write& write) {
  if (items.empty()) return brackets;
  const auto line = [&](int64_t level) {
    return indent < 0 ? std::string()
                      : '\n' + std::string(static_cast<size_t>(indent * level), ' ');
  };
  std::string out(1, brackets[0]);
  bool first = true;
  for (const auto& item : items) {
    if (!first) out += indent < 0 ? ", " : ",";
    first = false;
    out += line(depth + 1) + write(item);
  }
  return out + line(depth) + brackets[1];
}

std::string to_json(const Value& value, const JsonStyle& style, int64_t depth) {
  if (value.is_string()) return json_string(value.string(), style.ascii);
  if (value.is_none()) return "null";
  if (value.is_bool()) return value.truth() ? "true" : "false";
  if (value.is_float() && !std::isfinite(value.number()))
    return std::isnan(value.number()) ? "NaN" : value.number() > 0 ? "Infinity" : "-Infinity";
  if (value.is_number()) return value.text();
  if (value.is_list())
    return json_items("[]", value.list(), style.indent, depth,
                      [&](const Value& item) { return to_json(item, style, depth + 1); });
  if (value.is_dict())
    return json_items("{}", value.dict(), style.indent, depth, [&](const auto& entry) {
      return json_string(entry.first, style.ascii) + ": " + to_json(entry.second, style, depth + 1);
    });
  fail("tojson: ", value.type_name(), " has no form in JSON");
}

bool equal_lists(const List& a, const List& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), equal);
}

bool equal_dicts(const Dict& a, const Dict& b) {
  return a.size() == b.size() && std::all_of(a.begin(), a.end(), [&](const auto& entry) {
           const auto same = std::find_if(
               b.begin(), b.end(), [&](const auto& other) { return other.first == entry.first; });
           return same != b.end() && equal(entry.second, same->second);
         });
}

}  // namespace

Value Value::from_json(const nlohmann::ordered_json& json) {
  if (json.is_null()) return None{};
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX)
    fail("the number ", json.dump(), " is too large");
  if (json.is_number_integer()) return json.get<int64_t>();
  if (json.is_number_float()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  if (json.is_array()) {
    List items;
    for (const auto& item : json) items.push_back(from_json(item));
    return items;
  }
  Dict entries;
  for (const auto& [key, item] : json.items()) entries.emplace_back(key, from_json(item));
  return entries;
}

const char* Value::type_name() const {
  constexpr const char* kNames[] = {
      "what is undefined", "None",   "a bool", "an int",     "a float",    "a string",
      "a safe text",       "a list", "a dict", "a function", "a namespace"};
  return kNames[data_.index()];
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_number()) return number() != 0;
  if (is_string() || is_safe()) return !text().empty();
  if (is_list()) return !list().empty();
  if (is_dict()) return !dict().empty();
  return true;
}

std::string Value::text() const {
  if (is_undefined()) return "";
  if (is_none()) return "None";
  if (is_bool()) return truth() ? "True" : "False";
  if (is_int()) return std::to_string(integer());
  if (is_float()) return float_text(number());
  if (is_string()) return string();
  if (is_safe()) return std::get<SafeText>(data_).text;
  std::string out;
  if (is_list()) {
    for (const Value& item : list()) out += (out.empty() ? "" : ", ") + representation(item);
    return '[' + out + ']';
  }
  check(is_dict(), type_name(), " cannot be printed");
  for (const auto& [key, item] : dict())
    out += (out.empty() ? "" : ", ") + quoted(key) + ": " + representation(item);
  return '{' + out + '}';
}

std::string Value::json(int64_t indent, bool ascii) const {
  return to_json(*this, {indent, ascii}, 0);
}

const Value* Value::member(const std::string& name) const {
  if (!is_dict() && !is_namespace()) return nullptr;
  for (const auto& [key, value] : is_dict() ? dict() : space().members)
    if (key == name) return &value;
  return nullptr;
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number())
    return a.is_float() || b.is_float() ? a.number() == b.number() : a.integer() == b.integer();
  const auto is_text = [](const Value& value) { return value.is_string() || value.is_safe(); };
  if (is_text(a) && is_text(b)) return a.text() == b.text();
  if (a.is_list() && b.is_list()) return equal_lists(a.list(), b.list());
  if (a.is_dict() && b.is_dict()) return equal_dicts(a.dict(), b.dict());
  if (a.is_namespace() && b.is_namespace()) return &a.space() == &b.space();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

bool less(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number())
    return a.is_float() || b.is_float() ? a.number() < b.number() : a.integer() < b.integer();
  // The order of UTF-8 bytes is that of code points.
  if (a.is_string() && b.is_string()) return a.string() < b.string();
  if (a.is_list() && b.is_list())
    return std::lexicographical_compare(a.list().begin(), a.list().end(), b.list().begin(),
                                        b.list().end(), less);
  fail("'<' is not for ", a.type_name(), " and ", b.type_name());
}

List items_of(const Value& value) {
  if (value.is_undefined()) return {};
  if (value.is_list()) return value.list();
  List items;
  if (value.is_string()) {
    for (std::string& character : characters(value.string()))
      items.emplace_back(std::move(character));
    return items;
  }
  if (!value.is_dict()) fail(value.type_name(), " cannot be looped over");
  for (const auto& [key, item] : value.dict()) items.emplace_back(key);
  return items;
}

void set_member(Dict& members, const std::string& name, Value value) {
  for (auto& [key, old] : members)
    if (key == name) {
      old = std::move(value);
      return;
    }
  members.emplace_back(name, std::move(value));
}

std::vector<std::string> characters(const std::string& text) {
  std::vector<std::string> result;
  for (const char c : text) {
    const bool continues = (static_cast<unsigned char>(c) & 0xc0) == 0x80;
    if (continues && !result.empty() && static_cast<unsigned char>(result.back()[0]) >= 0xc0 &&
        result.back().size() < 4)
      result.back() += c;
    else
      result.emplace_back(1, c);
  }
  return result;
}

}  // namespace nibble::jinja
