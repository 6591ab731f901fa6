#include "model/tokenizer_pre.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>

#include "base/error.h"

namespace nibble {
namespace {

const std::string kContractions = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
const std::string kSpaces = R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string kWord = R"([^\r\n\p{L}\p{N}]?\p{L}+)";
const std::string kSymbols = R"( ?[^\s\p{L}\p{N}]+[\r\n]*)";

const std::string kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string kLlama3 =
    kContractions + "|" + kWord + R"(|\p{N}{1,3}|)" + kSymbols + "|" + kSpaces;
const std::string kQwen2 = kContractions + "|" + kWord + R"(|\p{N}|)" + kSymbols + "|" + kSpaces;
// U+0800 to U+9FA5 and U+AC00 to U+D7FF, less the spaces in between.
const std::string kCjk =
    R"([\x{800}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e})"
    R"(\x{2060}-\x{2fff}\x{3001}-\x{9fa5}\x{ac00}-\x{d7ff}]+)";
const std::string kBloom = R"( ?[^(\s|.,!?…。，、।۔،)]+)";

/// A word in llama.cpp's reading of the o200k and Tekken expressions: letters that are not a-z,
/// then letters that are not A-Z, one part possibly empty, and what may follow them.
std::string cased_words(const std::string& suffix) {
  const std::string start = R"([^\r\n\p{L}\p{N}]?)";
  return start + R"([^\P{L}a-z]*[^\P{L}A-Z]+)" + suffix + "|" + start +
         R"([^\P{L}a-z]+[^\P{L}A-Z]*)" + suffix;
}

const std::string kSlashSymbols = R"( ?[^\s\p{L}\p{N}]+[\r\n/]*)";

struct Group {
  std::vector<std::string> names;
  PreTokenizer rules;
};

const std::vector<Group>& groups() {
  static const std::vector<Group> kGroups = {
      {{"default"}, {.patterns = {R"([\p{P}$+<=>^~|]+)", kGpt2, R"(\p{N}+)", "[0-9]{3}"}}},
      {{"gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4", "mpt", "olmo", "jais",
        "trillion", "granite-docling"},
       {.patterns = {kGpt2}}},
      {{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
        "mellum2"},
       {.patterns = {R"(\p{N})", kGpt2}}},
      {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"},
       {.patterns = {kLlama3}, .ignore_merges = true, .add_bos = true}},
      {{"dbrx", "smaug-bpe"}, {.patterns = {kLlama3}}},
      {{"chatglm-bpe"}, {.patterns = {kLlama3}, .has_bos = false}},
      {{"glm4", "glm5"}, {.patterns = {kLlama3}, .ignore_merges = true, .has_bos = false}},
      {{"qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open",
        "grok-2"},
       {.patterns = {kQwen2}}},
      {{"qwen35"},
       {.patterns = {kContractions + R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N})" +
                     R"(| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|)" + kSpaces}}},
      {{"ufakzeka"}, {.patterns = {kWord + R"(|\p{N}|)" + kSymbols + "|" + kSpaces}}},
      {{"laguna"}, {.patterns = {R"([^\n]+|\n+)", kQwen2}}},
      {{"minicpm5"},
       {.patterns = {R"(\p{N}{1,3})",
                     kContractions + "|" + kWord + R"(|\p{N}+|)" + kSymbols + "|" + kSpaces},
        .ignore_merges = true}},
      {{"bailingmoe", "bailingmoe2", "llada-moe"},
       {.patterns = {"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|" + kWord + R"(|\p{N}|)" +
                     kSymbols + R"(|\s*[\r\n]|\s+(?!\S)|\s+)"}}},
      {{"seed-coder"},
       {.patterns = {kContractions + "|" + kWord + R"(|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|)" + kSpaces}}},
      {{"tekken"},
       {.patterns = {cased_words("") + R"(|\p{N}|)" + kSlashSymbols + "|" + kSpaces},
        .ignore_merges = true,
        .add_bos = true}},
      {{"gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"},
       {.patterns = {cased_words(kContractions + "?") + R"(|\p{N}{1,3}|)" + kSlashSymbols + "|" +
                     kSpaces}}},
      {{"falcon"}, {.patterns = {R"([\p{P}$+<=>^~|`]+)", kGpt2, "[0-9]{3}"}}},
      {{"deepseek-coder"},
       {.patterns = {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", kCjk, R"(\p{N})"}}},
      {{"deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"},
       {.patterns = {R"(\p{N}{1,3})", "[一-龥぀-ゟ゠-ヿ]+",
                     R"([!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
                     R"(| ?[\p{P}\p{S}]+[\r\n]*|)" +
                         kSpaces}}},
      {{"bloom", "poro-chat", "gpt3-finnish"}, {.patterns = {kBloom}}},
      {{"viking"}, {.patterns = {kBloom, R"(\p{N})"}}},
  };
  return kGroups;
}

std::string pcre2_message(int code) {
  char text[256];
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof text);
  return text;
}

bool is_continuation(std::string_view text, size_t i) {
  return i < text.size() && (static_cast<unsigned char>(text[i]) & 0xc0) == 0x80;
}

/// PCRE2 reads surrogates as malformed and U+180E as a space, where llama.cpp takes both for what
/// they are: to the expressions they look like U+E000 and U+200B, of the same length and neither
/// letter, number nor space.
std::string mask_for_pcre2(std::string_view text) {
  std::string masked(text);
  for (size_t i = 0; i + 2 < masked.size(); ++i) {
    const auto first = static_cast<unsigned char>(masked[i]);
    const auto second = static_cast<unsigned char>(masked[i + 1]);
    if (first == 0xed && second >= 0xa0) std::copy_n("\xee\x80\x80", 3, masked.begin() + i);
    if (first == 0xe1 && masked.compare(i, 3, "\xe1\xa0\x8e") == 0)
      std::copy_n("\xe2\x80\x8b", 3, masked.begin() + i);
  }
  return masked;
}

}  // namespace

const PreTokenizer& find_pre_tokenizer(const std::string& name) {
  std::vector<std::string> names;
  for (const Group& group : groups()) {
    for (const std::string& candidate : group.names) {
      if (candidate == name) return group.rules;
      names.push_back(candidate);
    }
  }
  fail("tokenizer.ggml.pre: no pre-tokenizer '", name, "'", did_you_mean(name, names));
}

struct WordSplitter::Pattern {
  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };
  std::unique_ptr<pcre2_code, Free> code;
};

WordSplitter::WordSplitter(const std::vector<std::string>& patterns) {
  for (const std::string& pattern : patterns) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                     PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
    check(code, "pre-tokenizer '", pattern, "': character ", offset, ": ", pcre2_message(error));
    patterns_.push_back({.code = std::unique_ptr<pcre2_code, Pattern::Free>(code)});
    // Where the machine has no JIT, PCRE2 interprets.
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  }
}

WordSplitter::~WordSplitter() = default;

std::vector<size_t> WordSplitter::split(std::string_view text) const {
  const std::string subject = mask_for_pcre2(text);
  std::vector<size_t> lengths = {subject.size()};
  for (const Pattern& pattern : patterns_) {
    const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> match(
        pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match.get());
    std::vector<size_t> finer;
    size_t begin = 0;
    for (size_t length : lengths) {
      size_t done = 0;
      while (done < length) {
        const int found =
            pcre2_match(pattern.code.get(), reinterpret_cast<PCRE2_SPTR>(subject.data() + begin),
                        length, done, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match.get(), nullptr);
        if (found == PCRE2_ERROR_NOMATCH) break;
        // 0: matched, with groups that found no place in the single pair of bounds.
        check(found >= 0, "pre-tokenizer: ", pcre2_message(found));
        if (bounds[0] > done) finer.push_back(bounds[0] - done);
        finer.push_back(bounds[1] - bounds[0]);
        done = bounds[1];
      }
      if (done < length) finer.push_back(length - done);
      begin += length;
    }
    lengths = std::move(finer);
  }
  return lengths;
}

CodePoint read_code_point(std::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  if (first < 0x80) return {first, 1};
  const size_t length = first < 0xc0   ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf8 ? 4
                                       : 0;
  uint32_t value = length == 0 ? 0 : first & (0x7fu >> length);
  for (size_t i = 1; i < length; ++i) {
    if (!is_continuation(text, i)) return {};
    value = value << 6 | (static_cast<unsigned char>(text[i]) & 0x3fu);
  }
  if (value > 0x10ffff) return {};  // llama.cpp refuses such text altogether
  return {value, length};
}

void append_utf8(uint32_t code_point, std::string& text) {
  const auto tail = [&](int shift) {
    text += static_cast<char>(0x80 | (code_point >> shift & 0x3f));
  };
  if (code_point < 0x80) {
    text += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    text += static_cast<char>(0xc0 | code_point >> 6);
    tail(0);
  } else if (code_point < 0x10000) {
    text += static_cast<char>(0xe0 | code_point >> 12);
    tail(6), tail(0);
  } else {
    text += static_cast<char>(0xf0 | code_point >> 18);
    tail(12), tail(6), tail(0);
  }
}

std::string repair_utf8(std::string_view text) {
  constexpr uint32_t kReplacement = 0xfffd;
  std::string repaired;
  repaired.reserve(text.size());
  while (!text.empty()) {
    const CodePoint point = read_code_point(text);
    append_utf8(point.length == 0 ? kReplacement : point.value, repaired);
    text.remove_prefix(point.length == 0 ? 1 : point.length);
  }
  return repaired;
}

}  // namespace nibble
