#include "configs/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <sstream>

#include "base/error.h"

namespace nibble {
namespace {

// A run's configuration is a page of text; these bounds only keep hostile input from costing
// anything.
constexpr size_t kMaxBytes = 256 * 1024;
constexpr size_t kMaxDepth = 16;
constexpr size_t kMaxKeys = 1000;  // in one group

/// Builds the tree from yaml-cpp's events, so that nothing is allocated for a text that is refused.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(std::string origin, YamlNode* root) : origin_(std::move(origin)), root_(root) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    add(mark, anchor, YamlNode::Kind::kNull);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    fail_usage(place(mark), ": aliases (*name) are not taken: write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    if (expects_key()) {
      refuse_anchor(mark, anchor);
      take_key(mark, value);
      return;
    }
    YamlNode& node = add(mark, anchor, YamlNode::Kind::kScalar);
    node.scalar = value;
    node.quoted = tag == "!";  // yaml-cpp's mark of a quoted scalar; plain ones have "?"
    if (!node.quoted && (value == "~" || value == "null")) node.kind = YamlNode::Kind::kNull;
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, anchor, YamlNode::Kind::kList);
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, anchor, YamlNode::Kind::kMap);
  }
  void OnMapEnd() override { open_.pop_back(); }

 private:
  struct Open {
    YamlNode* node;
    std::string key, key_place;
    bool has_key = false;
  };

  std::string place(const YAML::Mark& mark) const {
    return concat(origin_, ':', mark.line + 1, ':', mark.column + 1);
  }
  bool expects_key() const {
    return !open_.empty() && open_.back().node->kind == YamlNode::Kind::kMap &&
           !open_.back().has_key;
  }
  void refuse_anchor(const YAML::Mark& mark, YAML::anchor_t anchor) const {
    if (anchor) fail_usage(place(mark), ": anchors (&name) are not taken: write the value out");
  }
  void take_key(const YAML::Mark& mark, const std::string& key) {
    Open& parent = open_.back();
    if (parent.node->find(key)) fail_usage(place(mark), ": key '", key, "' is given twice");
    if (parent.node->map.size() == kMaxKeys)
      fail_usage(place(mark), ": more than ", kMaxKeys, " keys in one group");
    parent.key = key;
    parent.key_place = place(mark);
    parent.has_key = true;
  }

  /// A node in the container that is open, or the root. Containers never grow while a child of
  /// theirs is open, so the pointers in open_ stay good.
  YamlNode& add(const YAML::Mark& mark, YAML::anchor_t anchor, YamlNode::Kind kind) {
    refuse_anchor(mark, anchor);
    if (expects_key()) fail_usage(place(mark), ": a key must be text");
    YamlNode* node = root_;
    std::string key_place = place(mark);
    if (!open_.empty()) {
      Open& parent = open_.back();
      if (parent.node->kind == YamlNode::Kind::kMap) {
        parent.has_key = false;
        key_place = parent.key_place;
        node = &parent.node->map.emplace_back(parent.key, YamlNode{}).second;
      } else {
        node = &parent.node->items.emplace_back();
      }
    }
    node->kind = kind;
    // Where there is no value, yaml-cpp's mark is that of whatever comes next.
    node->place = kind == YamlNode::Kind::kNull ? key_place : place(mark);
    node->key_place = key_place;
    return *node;
  }
  void open(const YAML::Mark& mark, YAML::anchor_t anchor, YamlNode::Kind kind) {
    if (open_.size() >= kMaxDepth)
      fail_usage(place(mark), ": nested more than ", kMaxDepth, " deep");
    open_.push_back({&add(mark, anchor, kind), "", "", false});
  }

  std::string origin_;
  YamlNode* root_;
  std::vector<Open> open_;
};

}  // namespace

const YamlNode* YamlNode::find(std::string_view key) const {
  for (const auto& [name, node] : map)
    if (name == key) return &node;
  return nullptr;
}

std::string YamlNode::description() const {
  switch (kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kScalar:
      return concat('\'', scalar, '\'');
    case Kind::kList:
      return "a list";
    case Kind::kMap:
      return "a group of keys";
  }
  return "";
}

YamlNode parse_yaml(const std::string& text, const std::string& origin) {
  if (text.size() > kMaxBytes)
    fail_usage(origin, ": ", text.size(), " bytes is too long for a configuration (at most ",
               kMaxBytes, ")");
  YamlNode root;
  root.place = root.key_place = origin + ":1:1";
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    TreeBuilder builder(origin, &root);
    parser.HandleNextDocument(builder);
    YamlNode second;
    TreeBuilder rest(origin, &second);
    if (parser.HandleNextDocument(rest))
      fail_usage(second.place, ": a second document; a configuration is one");
  } catch (const YAML::Exception& error) {
    fail_usage(origin, ':', error.mark.line + 1, ':', error.mark.column + 1, ": ", error.msg);
  }
  return root;
}

std::string yaml_quoted(std::string_view text) {
  const bool plain =
      !text.empty() && text != "null" &&
      (std::isalnum(static_cast<unsigned char>(text[0])) || text[0] == '/' || text[0] == '_') &&
      std::all_of(text.begin(), text.end(), [](unsigned char c) {
        return std::isalnum(c) || c == '_' || c == '.' || c == '/' || c == '-' || c == '+';
      });
  if (plain) return std::string(text);
  std::string out = "\"";
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\x%02x", byte);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace nibble
