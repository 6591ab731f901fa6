#include "model/tokenizer_bpe.h"

#include <limits>
#include <queue>

#include "base/error.h"
#include "model/word_cache.h"

namespace nibble {
namespace {

/// GPT-2's alphabet: the code point that spells each byte.
std::array<uint32_t, 256> make_alphabet() {
  std::array<uint32_t, 256> alphabet;
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    alphabet[byte] = printable ? byte : next++;
  }
  return alphabet;
}
const std::array<uint32_t, 256> kAlphabet = make_alphabet();

/// Bytes -> their spelling.
std::string spell(std::string_view bytes) {
  std::string text;
  for (char byte : bytes) append_utf8(kAlphabet[static_cast<unsigned char>(byte)], text);
  return text;
}

/// Spelling -> bytes; characters outside the alphabet stay as they are.
std::string unspell(std::string_view text) {
  static const std::unordered_map<uint32_t, char> kBytes = [] {
    std::unordered_map<uint32_t, char> bytes;
    for (int byte = 0; byte < 256; ++byte) bytes[kAlphabet[byte]] = static_cast<char>(byte);
    return bytes;
  }();
  std::string bytes;
  while (!text.empty()) {
    const CodePoint point = read_code_point(text);
    const auto found = kBytes.find(point.value);
    const size_t length = point.length == 0 ? 1 : point.length;
    if (point.length > 0 && found != kBytes.end()) {
      bytes += found->second;
    } else {
      bytes += text.substr(0, length);
    }
    text.remove_prefix(length);
  }
  return bytes;
}

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

/// The symbols of one word, merged step by step, and the merges that are possible.
struct BpeTokenizer::Workspace {
  struct Symbol {
    int32_t id;  // -1: merged to the left
    int32_t previous, next;
  };
  struct Candidate {
    int32_t rank, left, right, left_id, right_id, result;
    bool operator<(const Candidate& other) const {
      return rank > other.rank || (rank == other.rank && left > other.left);
    }
  };
  std::vector<Symbol> symbols;
  std::priority_queue<Candidate> candidates;
};

BpeTokenizer::BpeTokenizer(const GgufMetadata& metadata)
    : BpeTokenizer(metadata,
                   find_pre_tokenizer(metadata.get_string_or("tokenizer.ggml.pre", "default"))) {}

// 11 is llama.cpp's BOS and EOS (Falcon's) where the metadata names none.
BpeTokenizer::BpeTokenizer(const GgufMetadata& metadata, const PreTokenizer& rules)
    : VocabularyTokenizer(metadata,
                          {.bos = rules.has_bos ? 11 : -1, .eos = 11, .add_bos = rules.add_bos}),
      splitter_(rules.patterns),
      ignore_merges_(rules.ignore_merges) {
  read_merges(metadata.get_strings("tokenizer.ggml.merges"));
}

void BpeTokenizer::read_merges(const std::vector<std::string>& merges) {
  std::unordered_map<std::string, int32_t> others;
  const auto symbol = [&](const std::string& text) {
    const int32_t id = vocabulary().find(text);
    if (id >= 0) return id;
    const auto next = vocabulary().size() + static_cast<int32_t>(others.size());
    const auto [entry, added] = others.try_emplace(text, next);
    if (added) other_symbols_.push_back(text);
    return entry->second;
  };
  for (int byte = 0; byte < 256; ++byte)
    byte_symbols_[byte] = symbol(spell(std::string(1, static_cast<char>(byte))));
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string& merge = merges[rank];
    const size_t space = merge.find(' ', 1);
    check(space != std::string::npos && space + 1 < merge.size(),
          "metadata key "
          "'tokenizer.ggml.merges': merge ",
          rank, " is '", merge, "', not two texts and a space");
    const std::string left = merge.substr(0, space), right = merge.substr(space + 1);
    const int32_t left_id = symbol(left), right_id = symbol(right);
    merges_.try_emplace(pair_key(left_id, right_id),
                        Merge{static_cast<int32_t>(rank), symbol(left + right)});
  }
}

std::string BpeTokenizer::piece(int32_t id) const {
  switch (vocabulary().type(id)) {
    case TokenType::kNormal:
      return unspell(vocabulary().text(id));
    case TokenType::kByte:
      return vocabulary().byte_of(id);
    default:
      return "";
  }
}

void BpeTokenizer::encode_text(std::string_view text, bool, std::vector<int32_t>& ids) const {
  const std::string repaired = repair_utf8(text);
  check(repaired.size() <= std::numeric_limits<int32_t>::max(), "a text of ", repaired.size(),
        " bytes is too long to tokenize in one piece");
  WordCache cache;
  Workspace workspace;
  std::string_view rest = repaired;
  for (size_t length : splitter_.split(repaired)) {
    const std::string_view word = rest.substr(0, length);
    rest.remove_prefix(length);
    cache.append(word, ids, [&] { encode_word(word, workspace, ids); });
  }
}

void BpeTokenizer::try_merge(int32_t left, int32_t right, Workspace& workspace) const {
  if (left < 0 || right < 0) return;
  const int32_t left_id = workspace.symbols[left].id, right_id = workspace.symbols[right].id;
  const auto found = merges_.find(pair_key(left_id, right_id));
  if (found == merges_.end()) return;
  workspace.candidates.push(
      {found->second.rank, left, right, left_id, right_id, found->second.result});
}

void BpeTokenizer::encode_word(std::string_view word, Workspace& workspace,
                               std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    const int32_t id = vocabulary().find(spell(word));
    if (id >= 0) return ids.push_back(id);
  }
  std::vector<Workspace::Symbol>& symbols = workspace.symbols;
  symbols.clear();
  for (char byte : word) {
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({byte_symbols_[static_cast<unsigned char>(byte)], index - 1, index + 1});
  }
  symbols.back().next = -1;
  for (int32_t i = 1; i < static_cast<int32_t>(symbols.size()); ++i) try_merge(i - 1, i, workspace);

  while (!workspace.candidates.empty()) {
    const Workspace::Candidate merge = workspace.candidates.top();
    workspace.candidates.pop();
    Workspace::Symbol& left = symbols[merge.left];
    Workspace::Symbol& right = symbols[merge.right];
    // A merge whose parts changed since it was found is void.
    if (left.id != merge.left_id || right.id != merge.right_id) continue;
    left.id = merge.result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = merge.left;
    try_merge(left.previous, merge.left, workspace);
    try_merge(merge.left, left.next, workspace);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) append_symbol(symbols[i].id, ids);
}

void BpeTokenizer::append_symbol(int32_t symbol, std::vector<int32_t>& ids) const {
  if (symbol < vocabulary().size()) return ids.push_back(symbol);
  // As llama.cpp: each byte of the spelling by itself, where it is a token; other bytes vanish.
  for (char byte : other_symbols_[symbol - vocabulary().size()]) {
    const int32_t id = vocabulary().find(std::string_view(&byte, 1));
    if (id >= 0) ids.push_back(id);
  }
}

}  // namespace nibble
