// The texts of tokens as a tree of bytes: which tokens a text starts with.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble {

class TokenTrie {
 public:
  /// Texts that are not empty, and differ.
  explicit TokenTrie(std::vector<std::pair<std::string_view, int32_t>> tokens);

  /// Calls visit(id, bytes) for each token that `text` starts with, the shortest first.
  template <class Visit>
  void prefixes(std::string_view text, const Visit& visit) const {
    uint32_t node = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      node = child(node, static_cast<uint8_t>(text[i]));
      if (node == 0) return;
      if (nodes_[node].id >= 0) visit(nodes_[node].id, i + 1);
    }
  }

 private:
  struct Node {
    int32_t id = -1;  // of the token that ends here
    uint32_t first_child = 0;
    uint16_t num_children = 0;
    uint8_t byte = 0;  // that leads here
  };
  /// 0, the root, where there is none. Children lie side by side in the order of their bytes.
  uint32_t child(uint32_t node, uint8_t byte) const {
    uint32_t low = nodes_[node].first_child;
    uint32_t high = low + nodes_[node].num_children;
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2;
      if (nodes_[middle].byte == byte) return middle;
      if (nodes_[middle].byte < byte)
        low = middle + 1;
      else
        high = middle;
    }
    return 0;
  }

  std::vector<Node> nodes_ = {Node{}};
};

}  // namespace nibble
