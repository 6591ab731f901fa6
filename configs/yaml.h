// YAML text as a plain tree that remembers where each value stood. The only place that knows
// yaml-cpp. A text is treated as hostile: size and nesting are bounded, anchors and aliases are
// refused (they can grow without bound), and so are a key given twice and a second document.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble {

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };

  Kind kind = Kind::kNull;
  std::string scalar;           // of kScalar, unquoted
  bool quoted = false;          // was written with quotes, so it is text whatever it looks like
  std::string place;            // "file.yaml:3:7", line and column from 1
  std::string key_place;        // of the key that leads here; in a list or at the root as place
  std::vector<YamlNode> items;  // of kList
  std::vector<std::pair<std::string, YamlNode>> map;  // of kMap, in file order

  const YamlNode* find(std::string_view key) const;
  /// "text", "a list", ...: what an error says was found.
  std::string description() const;
};

/// Throws Error (usage) as "origin:line:column: what is wrong". An empty text is a kNull node.
YamlNode parse_yaml(const std::string& text, const std::string& origin);

/// The text as a YAML scalar that reads back as the same text: plain where that is safe, else
/// double-quoted.
std::string yaml_quoted(std::string_view text);

}  // namespace nibble
