#include "configs/field.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"

namespace nibble {
namespace {

template <class... Args>
[[noreturn]] void refuse(const YamlNode& node, const std::string& key, const Args&... args) {
  fail_usage(node.place, ": ", key, ": ", args...);
}

/// The number in a scalar, or an error that says what was wanted.
template <class Number>
Number parse_number(const Field& field, const YamlNode& node, const char* wanted) {
  Number value{};
  const char* end = node.scalar.data() + node.scalar.size();
  if (node.kind == YamlNode::Kind::kScalar && !node.quoted) {
    const auto result = std::from_chars(node.scalar.data(), end, value);
    if (result.ec == std::errc() && result.ptr == end) return value;
  }
  refuse(node, field.key, "wants ", wanted, ", found ", node.description());
}

std::string number_text(double value) {
  char buffer[32];
  return {buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr};
}

void check_range(const Field& field, const YamlNode& node, double value) {
  if (value >= field.least && value <= field.most) return;  // a NaN fails too
  const std::string wanted =
      std::isinf(field.most) ? concat("at least ", number_text(field.least))
                             : concat(number_text(field.least), " to ", number_text(field.most));
  refuse(node, field.key, "wants ", wanted, ", found ", node.description());
}

std::string parse_text(const Field& field, const YamlNode& node) {
  if (node.kind != YamlNode::Kind::kScalar)
    refuse(node, field.key, "wants text, found ", node.description());
  if (node.scalar.find('\0') != std::string::npos) refuse(node, field.key, "holds a zero byte");
  const auto& choices = field.choices;
  if (!choices.empty() && std::find(choices.begin(), choices.end(), node.scalar) == choices.end()) {
    const std::string refusal = field.refusal ? field.refusal(node.scalar) : "";
    if (!refusal.empty()) refuse(node, field.key, refusal);
    std::string list;
    for (const std::string& choice : choices) list += (list.empty() ? "" : ", ") + choice;
    refuse(node, field.key, "wants one of ", list, ", found '", node.scalar, "'",
           did_you_mean(node.scalar, choices));
  }
  return node.scalar;
}

struct Reader {
  const Field& field;
  const YamlNode& node;

  void operator()(bool* member) const {
    const bool yes = node.scalar == "true";
    if (node.kind != YamlNode::Kind::kScalar || node.quoted || (!yes && node.scalar != "false"))
      refuse(node, field.key, "wants true or false, found ", node.description());
    *member = yes;
  }
  void operator()(std::string* member) const { *member = parse_text(field, node); }
  void operator()(int64_t* member) const {
    const auto value = parse_number<int64_t>(field, node, "a whole number");
    check_range(field, node, static_cast<double>(value));
    *member = value;
  }
  void operator()(uint64_t* member) const {
    *member = parse_number<uint64_t>(field, node, "a whole number, 0 or more");
  }
  void operator()(double* member) const {
    const auto value = parse_number<double>(field, node, "a number");
    check_range(field, node, value);
    *member = value;
  }
  void operator()(std::vector<std::string>* member) const {
    check_list();
    std::vector<std::string> texts;
    for (const YamlNode& item : node.items) texts.push_back(parse_text(field, item));
    *member = std::move(texts);
  }
  void operator()(std::vector<double>* member) const {
    check_list();
    std::vector<double> numbers;
    for (const YamlNode& item : node.items) {
      numbers.push_back(parse_number<double>(field, item, "a number"));
      check_range(field, item, numbers.back());
    }
    *member = std::move(numbers);
  }
  void check_list() const {
    if (node.kind != YamlNode::Kind::kList)
      refuse(node, field.key, "wants a list ([a, b]), found ", node.description());
  }
};

template <class T, class Write>
std::string list_text(const std::vector<T>& items, const Write& write) {
  std::string out = "[";
  for (const T& item : items) out += (out.size() > 1 ? ", " : "") + write(item);
  return out + ']';
}

struct Writer {
  std::string operator()(const bool* member) const { return *member ? "true" : "false"; }
  std::string operator()(const std::string* member) const { return yaml_quoted(*member); }
  std::string operator()(const int64_t* member) const { return std::to_string(*member); }
  std::string operator()(const uint64_t* member) const { return std::to_string(*member); }
  std::string operator()(const double* member) const { return number_text(*member); }
  std::string operator()(const std::vector<std::string>* member) const {
    return list_text(*member, yaml_quoted);
  }
  std::string operator()(const std::vector<double>* member) const {
    return list_text(*member, number_text);
  }
};

const Field* find_field(const std::vector<Field>& fields, const std::string& key) {
  for (const Field& field : fields)
    if (field.key == key) return &field;
  return nullptr;
}

bool is_group(const std::vector<Field>& fields, const std::string& key) {
  return std::any_of(fields.begin(), fields.end(),
                     [&](const Field& field) { return field.key.starts_with(key + '.'); });
}

/// " (did you mean 'x'?)": first among the keys of the same group, then a key of that name in any
/// group.
std::string nearest_key(const std::vector<Field>& fields, const std::string& key) {
  const size_t dot = key.rfind('.');
  const std::string group = dot == std::string::npos ? "" : key.substr(0, dot + 1);
  const std::string name = key.substr(group.size());
  std::vector<std::string> siblings, namesakes;
  for (const Field& field : fields) {
    if (field.key.starts_with(group)) {
      const std::string rest = field.key.substr(group.size());
      siblings.push_back(rest.substr(0, rest.find('.')));
    }
    if (field.key.ends_with('.' + name) || field.key == name) namesakes.push_back(field.key);
  }
  if (!namesakes.empty()) return " (did you mean '" + namesakes.front() + "'?)";
  return did_you_mean(name, siblings);
}

void read_group(const std::vector<Field>& fields, const YamlNode& node, const std::string& group,
                std::vector<GivenKey>& given) {
  for (const auto& [name, value] : node.map) {
    const std::string key = group + name;
    if (const Field* field = find_field(fields, key)) {
      field->read(value);
      given.push_back({key, value.place});
    } else if (!is_group(fields, key)) {
      fail_usage(value.key_place, ": ", key, ": unknown key", nearest_key(fields, key));
    } else if (value.kind != YamlNode::Kind::kMap) {
      refuse(value, key, "wants a group of keys, found ", value.description());
    } else {
      read_group(fields, value, key + '.', given);
    }
  }
}

void place_all(YamlNode& node, const std::string& place) {
  node.place = node.key_place = place;
  for (YamlNode& item : node.items) place_all(item, place);
  for (auto& [name, value] : node.map) place_all(value, place);
}

}  // namespace

void Field::read(const YamlNode& node) const { std::visit(Reader{*this, node}, member); }

std::string Field::write() const { return std::visit(Writer{}, member); }

std::vector<GivenKey> read_fields(const std::vector<Field>& fields, const YamlNode& root) {
  if (root.kind != YamlNode::Kind::kMap)
    fail_usage(root.place, ": wants keys (name: value), found ", root.description());
  std::vector<GivenKey> given;
  read_group(fields, root, "", given);
  return given;
}

std::vector<GivenKey> read_override(const std::vector<Field>& fields,
                                    const std::string& assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0)
    fail_usage("--set ", assignment, ": wants key=value");
  const std::string key = assignment.substr(0, equals);
  if (!find_field(fields, key) && !is_group(fields, key))
    fail_usage("--set ", key, ": unknown key", nearest_key(fields, key));
  YamlNode root;
  root.kind = YamlNode::Kind::kMap;
  root.map = {{key, parse_yaml(assignment.substr(equals + 1), "--set " + key)}};
  place_all(root, "--set");
  return read_fields(fields, root);
}

std::string write_fields(const std::vector<Field>& fields,
                         const std::vector<std::string>& without) {
  std::string out, open_group;
  for (const Field& field : fields) {
    if (std::find(without.begin(), without.end(), field.key) != without.end()) continue;
    const size_t dot = field.key.find('.');
    const std::string group = dot == std::string::npos ? "" : field.key.substr(0, dot);
    if (!group.empty() && group != open_group) out += group + ":\n";
    open_group = group;
    const std::string name = group.empty() ? field.key : "  " + field.key.substr(dot + 1);
    out += name + ": " + field.write() + '\n';
  }
  return out;
}

}  // namespace nibble
