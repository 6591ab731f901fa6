#include "model/tokenizer_spm.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <queue>

#include "base/error.h"
#include "model/tokenizer_spaces.h"
#include "model/word_cache.h"

namespace nibble {

/// Characters of one word, joined step by step, and the joins that are possible.
struct SpmTokenizer::Workspace {
  struct Symbol {
    int32_t begin, size;  // bytes of the word; size 0: joined to the left
    int32_t previous, next;
  };
  struct Join {
    float score;
    int32_t left, right, size;
    bool operator<(const Join& other) const {
      return score < other.score || (score == other.score && left > other.left);
    }
  };
  std::vector<Symbol> symbols;
  std::priority_queue<Join> joins;
};

SpmTokenizer::SpmTokenizer(const GgufMetadata& metadata)
    : VocabularyTokenizer(metadata, {.bos = 1, .eos = 2, .unknown = 0, .add_bos = true}),
      scores_(read_scores(metadata, vocabulary())),
      adds_space_(metadata.get_bool_or("tokenizer.ggml.add_space_prefix", true)) {
  const Vocabulary& tokens = vocabulary();
  for (int32_t id = 0; id < tokens.size(); ++id)
    words_are_independent_ = words_are_independent_ && !has_inner_space(tokens.text(id));
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(byte));
    int32_t id = tokens.find(name);
    if (id < 0) id = tokens.find(std::string(1, static_cast<char>(byte)));
    byte_ids_[byte] = id < 0 ? tokens.unknown() : id;
    check(byte_ids_[byte] >= 0, "no token for the byte ", name, " and no unknown token");
  }
}

std::string SpmTokenizer::piece(int32_t id) const {
  switch (vocabulary().type(id)) {
    case TokenType::kNormal:
      return unescape_spaces(vocabulary().text(id));
    case TokenType::kByte:
      return vocabulary().byte_of(id);
    default:
      return "";
  }
}

void SpmTokenizer::encode_text(std::string_view text, bool starts,
                               std::vector<int32_t>& ids) const {
  std::string escaped(starts && adds_space_ ? kSpaceMark : "");
  escaped += escape_spaces(text);
  check(escaped.size() <= std::numeric_limits<int32_t>::max(), "a text of ", escaped.size(),
        " bytes is too long to tokenize in one piece");
  WordCache cache;
  Workspace workspace;
  std::vector<std::string_view> words = {escaped};
  if (words_are_independent_) words = split_at_spaces(escaped);
  for (std::string_view word : words) {
    cache.append(word, ids, [&] { encode_word(word, workspace, ids); });
  }
}

void SpmTokenizer::try_merge(std::string_view word, int32_t left, int32_t right,
                             Workspace& workspace) const {
  if (left < 0 || right < 0) return;
  const Workspace::Symbol& first = workspace.symbols[left];
  const int32_t size = first.size + workspace.symbols[right].size;
  const int32_t id = vocabulary().find(word.substr(first.begin, size));
  if (id >= 0) workspace.joins.push({scores_[id], left, right, size});
}

void SpmTokenizer::encode_word(std::string_view word, Workspace& workspace,
                               std::vector<int32_t>& ids) const {
  std::vector<Workspace::Symbol>& symbols = workspace.symbols;
  symbols.clear();
  for (size_t at = 0; at < word.size();) {
    const size_t size = std::min(character_length(word[at]), word.size() - at);
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({static_cast<int32_t>(at), static_cast<int32_t>(size), index - 1, index + 1});
    at += size;
  }
  symbols.back().next = -1;
  for (int32_t i = 1; i < static_cast<int32_t>(symbols.size()); ++i)
    try_merge(word, i - 1, i, workspace);

  while (!workspace.joins.empty()) {
    const Workspace::Join join = workspace.joins.top();
    workspace.joins.pop();
    Workspace::Symbol& left = symbols[join.left];
    Workspace::Symbol& right = symbols[join.right];
    // A join whose parts changed since it was found is void.
    if (left.size == 0 || right.size == 0 || left.size + right.size != join.size) continue;
    left.size = join.size;
    right.size = 0;
    left.next = right.next;
    if (right.next >= 0) symbols[right.next].previous = join.left;
    try_merge(word, left.previous, join.left, workspace);
    try_merge(word, join.left, left.next, workspace);
  }

  for (int32_t i = 0; i >= 0; i = symbols[i].next) {
    const std::string_view text = word.substr(symbols[i].begin, symbols[i].size);
    const int32_t id = vocabulary().find(text);
    if (id >= 0) {
      ids.push_back(id);
    } else {
      for (char byte : text) ids.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
    }
  }
}

}  // namespace nibble
