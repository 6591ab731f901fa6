// Encodes a text word by word; a word met before is copied from where its ids already stand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace nibble {

class WordCache {
 public:
  /// Appends the ids of `word`, which must outlive the cache, to `ids`: the same vector in every
  /// call. encode(): appends them the long way, for a word that is new.
  template <class Encode>
  void append(std::string_view word, std::vector<int32_t>& ids, const Encode& encode) {
    const auto [entry, added] = seen_.try_emplace(word);
    auto& [begin, end] = entry->second;
    if (added) {
      begin = ids.size();
      encode();
      end = ids.size();
    } else {
      for (size_t i = begin; i < end; ++i) ids.push_back(ids[i]);
    }
  }

 private:
  std::unordered_map<std::string_view, std::pair<size_t, size_t>> seen_;  // where ids begin and end
};

}  // namespace nibble
