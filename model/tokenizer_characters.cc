#include "model/tokenizer_characters.h"

#include <cstring>
#include <deque>
#include <unordered_map>
#include <utility>

#include "base/error.h"

namespace nibble {
namespace {

uint32_t base_offset(uint32_t unit) { return unit >> 10 << ((unit >> 9 & 1) * 8); }
bool ends_entry(uint32_t unit) { return (unit >> 8 & 1) != 0; }
/// What leads to a node; no byte where the unit is a value.
uint32_t label(uint32_t unit) { return unit & 0x800000ff; }

using Entries = std::vector<std::pair<std::string, uint32_t>>;  // sorted; values

/// Builds the double array: a node's children stand at its base, each moved by its byte, and a base
/// belongs to one node alone.
class DoubleArray {
 public:
  explicit DoubleArray(const Entries& entries) : entries_(entries) {
    grow();
    is_used_[0] = true;  // the root
    std::deque<Node> nodes = {{0, 0, entries.size(), 0}};
    for (; !nodes.empty(); nodes.pop_front()) place_children(nodes.front(), nodes);
  }
  const std::vector<uint32_t>& units() const { return units_; }

 private:
  static constexpr uint32_t kBlock = 256, kMaxUnits = 1 << 21;

  /// Entries begin to end share `depth` bytes, which lead to the unit.
  struct Node {
    uint32_t unit;
    size_t begin, end, depth;
  };

  void grow() {
    check(units_.size() + kBlock <= kMaxUnits, "a character map of more than ", kMaxUnits,
          " units");
    units_.resize(units_.size() + kBlock);
    is_used_.resize(units_.size());
    is_base_.resize(units_.size());
  }

  void place_children(const Node& node, std::deque<Node>& nodes) {
    std::vector<Node> children;  // their units are what they add to the base; a value adds 0
    for (size_t i = node.begin; i < node.end; ++i) {
      const std::string& key = entries_[i].first;
      const uint32_t byte =
          key.size() == node.depth ? 0 : static_cast<unsigned char>(key[node.depth]);
      if (children.empty() || children.back().unit != byte)
        children.push_back({byte, i, i, node.depth + 1});
      ++children.back().end;
    }
    if (children.empty()) return;
    const uint32_t base = find_base(children);
    const bool has_value = children.front().unit == 0;
    units_[node.unit] |= (node.unit ^ base) << 10 | static_cast<uint32_t>(has_value) << 8;
    for (Node& child : children) {
      const uint32_t label = child.unit;
      child.unit = base ^ label;
      is_used_[child.unit] = true;
      units_[child.unit] = label != 0 ? label : 0x80000000 | entries_[child.begin].second;
      if (label != 0) nodes.push_back(child);
    }
  }

  uint32_t find_base(const std::vector<Node>& children) {
    while (is_used_[first_free_])
      if (++first_free_ == units_.size()) grow();
    for (uint32_t place = first_free_;; ++place) {
      if (place == units_.size()) grow();
      const uint32_t base = place ^ children.front().unit;
      bool fits = !is_used_[place] && !is_base_[base];
      for (size_t i = 1; fits && i < children.size(); ++i)
        fits = !is_used_[base ^ children[i].unit];
      if (!fits) continue;
      is_base_[base] = true;
      return base;
    }
  }

  const Entries& entries_;
  std::vector<uint32_t> units_;
  std::vector<bool> is_used_, is_base_;
  uint32_t first_free_ = 0;
};

}  // namespace

std::string compile_character_map(const std::map<std::string, std::string>& replacements) {
  Entries entries;
  std::string texts;
  std::unordered_map<std::string, uint32_t> places;
  for (const auto& [from, to] : replacements) {
    const auto [place, added] = places.try_emplace(to, static_cast<uint32_t>(texts.size()));
    if (added) texts.append(to.c_str(), to.size() + 1);
    entries.emplace_back(from, place->second);
  }
  const DoubleArray array(entries);
  const auto size = static_cast<uint32_t>(array.units().size() * sizeof(uint32_t));
  std::string bytes(sizeof size + size, '\0');
  std::memcpy(bytes.data(), &size, sizeof size);
  std::memcpy(bytes.data() + sizeof size, array.units().data(), size);
  return bytes + texts;
}

CharacterMap::CharacterMap(std::span<const uint8_t> bytes) {
  uint32_t size = 0;
  check(bytes.size() > sizeof size, "a character map of ", bytes.size(), " bytes");
  std::memcpy(&size, bytes.data(), sizeof size);
  bytes = bytes.subspan(sizeof size);
  check(size < bytes.size(), "the array has ", size, " bytes, the map ", bytes.size());
  check(size % sizeof(uint32_t) == 0, "the array has ", size, " bytes, not whole units of 4");
  check(bytes.back() == 0, "the last replacement does not end");
  units_.resize(size / sizeof(uint32_t));
  if (size > 0) std::memcpy(units_.data(), bytes.data(), size);
  replacements_.assign(bytes.begin() + size, bytes.end());
}

uint32_t CharacterMap::unit(uint32_t index) const {
  check(index < units_.size(), "the character map leads to unit ", index, " of ", units_.size());
  return units_[index];
}

std::string_view CharacterMap::replacement(uint32_t offset) const {
  check(offset < replacements_.size(), "the character map leads to byte ", offset, " of ",
        replacements_.size(), " of its replacements");
  return replacements_.data() + offset;  // which ends with a zero byte
}

CharacterMap::Match CharacterMap::longest_prefix(std::string_view text) const {
  Match match;
  if (units_.empty()) return match;
  uint32_t node = base_offset(unit(0));
  for (size_t i = 0; i < text.size() && text[i] != '\0'; ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    node ^= byte;
    const uint32_t found = unit(node);
    if (label(found) != byte) break;
    node ^= base_offset(found);
    if (ends_entry(found)) match = {i + 1, replacement(unit(node) & 0x7fffffff)};
  }
  return match;
}

}  // namespace nibble
