// One key of a configuration, bound to the member it fills: reading, range check and writing back
// follow from the member's type.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "configs/yaml.h"

namespace nibble {

struct Field {
  using Member = std::variant<bool*, std::string*, int64_t*, uint64_t*, double*,
                              std::vector<std::string>*, std::vector<double>*>;

  std::string key;  // "optimizer.learning_rate"
  Member member;
  /// Of a number; what lies outside is refused.
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  /// Of a text, or of each text in a list: what it may be; empty: anything.
  std::vector<std::string> choices = {};
  /// Where given: why a text is none of the choices, or "" to name the nearest choice instead.
  std::string (*refusal)(std::string_view text) = nullptr;

  /// Fills the member. Throws Error (usage) with the node's place and the key.
  void read(const YamlNode& node) const;
  /// The member's value as YAML on one line.
  std::string write() const;
};

/// A key that was set, and where.
struct GivenKey {
  std::string key, place;
};

/// Fills the members of all keys that `root` holds and returns these keys. Throws for a key that no
/// field has, naming the nearest one.
std::vector<GivenKey> read_fields(const std::vector<Field>& fields, const YamlNode& root);
/// The same for "key=value" of the option --set, where the key may be a group: loss={kind: ce}.
std::vector<GivenKey> read_override(const std::vector<Field>& fields,
                                    const std::string& assignment);
/// All fields as nested YAML, but for the keys in `without`.
std::string write_fields(const std::vector<Field>& fields, const std::vector<std::string>& without);

}  // namespace nibble
