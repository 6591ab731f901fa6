#include "model/tokenizer_trie.h"

#include <algorithm>
#include <cstddef>

namespace nibble {
namespace {

/// The sorted tokens that share a node's bytes.
struct Range {
  size_t begin, end, depth;
};

}  // namespace

TokenTrie::TokenTrie(std::vector<std::pair<std::string_view, int32_t>> tokens) {
  std::sort(tokens.begin(), tokens.end());
  std::vector<Range> ranges = {{0, tokens.size(), 0}};  // of each node
  for (size_t node = 0; node < nodes_.size(); ++node) {
    auto [begin, end, depth] = ranges[node];
    if (begin < end && tokens[begin].first.size() == depth)
      nodes_[node].id = tokens[begin++].second;
    nodes_[node].first_child = static_cast<uint32_t>(nodes_.size());
    while (begin < end) {
      const char byte = tokens[begin].first[depth];
      const size_t first = begin;
      while (begin < end && tokens[begin].first[depth] == byte) ++begin;
      nodes_.push_back({.byte = static_cast<uint8_t>(byte)});
      ranges.push_back({first, begin, depth + 1});
      ++nodes_[node].num_children;
    }
  }
}

}  // namespace nibble
