#include "model/hf/normalizers.h"

#include <utf8proc.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>

#include "base/error.h"
#include "model/hf/json_fields.h"
#include "model/tokenizer_characters.h"
#include "model/tokenizer_pre.h"

namespace nibble {
namespace {

using NormalForm = utf8proc_uint8_t*(const utf8proc_uint8_t*);

constexpr uint32_t kNumCodePoints = 0x110000;

std::string normal_form(NormalForm* form, const std::string& text) {
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> made(
      form(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str())), std::free);
  check(made != nullptr, "'", text, "' cannot be normalized");
  return reinterpret_cast<const char*>(made.get());
}

std::string utf8(uint32_t code_point) {
  std::string text;
  append_utf8(code_point, text);
  return text;
}

std::vector<uint32_t> code_points(std::string_view text) {
  std::vector<uint32_t> points;
  while (!text.empty()) {
    const CodePoint point = read_code_point(text);
    check(point.length > 0, "a text is not UTF-8");
    points.push_back(point.value);
    text.remove_prefix(point.length);
  }
  return points;
}

/// `change` gives what a code point becomes, as UTF-8.
template <class Change>
std::string each(const std::string& text, const Change& change) {
  std::string out;
  for (const uint32_t point : code_points(text)) out += change(point);
  return out;
}

/// Of the machine translation that sentencepiece comes from: control characters go, spaces become
/// plain (source: tokenizers src/normalizers/unicode.rs).
std::string nmt(uint32_t point) {
  const bool control = (point >= 1 && point <= 8) || point == 0xb ||
                       (point >= 0xe && point <= 0x1f) || point == 0x7f || point == 0x8f ||
                       point == 0x9f;
  if (control) return "";
  const bool space = point == 0x9 || point == 0xa || point == 0xc || point == 0xd ||
                     point == 0x1680 || (point >= 0x200b && point <= 0x200f) || point == 0x2028 ||
                     point == 0x2029 || point == 0x2581 || point == 0xfeff || point == 0xfffd;
  return space ? " " : utf8(point);
}

std::string plain_space(uint32_t point) {
  const bool space = (point >= 0x9 && point <= 0xd) || point == 0x85 || point == 0xa0 ||
                     point == 0x1680 || (point >= 0x2000 && point <= 0x200a) || point == 0x2028 ||
                     point == 0x2029 || point == 0x202f || point == 0x205f || point == 0x3000;
  return space ? " " : utf8(point);
}

std::string lowercase(uint32_t point) {
  if (point == 0x130) return "i\u0307";  // the one character whose lower case is two
  return utf8(static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(point))));
}

std::string replace_all(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

/// A character's canonical decompositions: whole, and those whose first part is composed.
void append_decompositions(const std::string& character, std::vector<std::string>& sources) {
  const std::vector<uint32_t> parts = code_points(normal_form(utf8proc_NFD, character));
  for (size_t head = 1; head < parts.size(); ++head) {
    std::string text;
    for (size_t i = 0; i < head; ++i) append_utf8(parts[i], text);
    text = normal_form(utf8proc_NFC, text);
    for (size_t i = head; i < parts.size(); ++i) append_utf8(parts[i], text);
    sources.push_back(text);
  }
}

void append_voiced_kana(std::vector<std::string>& sources) {
  const auto append = [&](uint32_t first, uint32_t last) {
    for (uint32_t kana = first; kana <= last; ++kana)
      for (const uint32_t mark : {0x3099u, 0x309au, 0xff9eu, 0xff9fu})
        sources.push_back(utf8(kana) + utf8(mark));
  };
  append(0x3041, 0x30ff);
  append(0xff66, 0xff9d);
}

}  // namespace

bool Normalizers::add(const nlohmann::json& step) {
  static const std::map<std::string, NormalForm*> kForms = {{"NFC", utf8proc_NFC},
                                                            {"NFD", utf8proc_NFD},
                                                            {"NFKC", utf8proc_NFKC},
                                                            {"NFKD", utf8proc_NFKD}};
  static const std::map<std::string, std::string (*)(uint32_t)> kChanges = {
      {"Nmt", nmt}, {"Lowercase", lowercase}, {"WhitespaceSplit", plain_space}};
  const std::string type = text_field(step, "type").value_or("");
  if (const auto form = kForms.find(type); form != kForms.end()) {
    steps_.emplace_back(
        [f = form->second](const std::string& text) { return normal_form(f, text); });
  } else if (const auto change = kChanges.find(type); change != kChanges.end()) {
    steps_.emplace_back([f = change->second](const std::string& text) { return each(text, f); });
  } else {
    const nlohmann::json* pattern = type == "Replace" ? object_field(step, "pattern") : nullptr;
    const std::string from = pattern ? text_field(*pattern, "String").value_or("") : "";
    if (from.empty() || from.find('\0') != std::string::npos) return false;
    replaced_.push_back(from);
    steps_.emplace_back([from, to = text_field(step, "content").value_or("")](
                            const std::string& text) { return replace_all(text, from, to); });
  }
  return true;
}

std::string Normalizers::apply(std::string text) const {
  for (const auto& step : steps_) text = step(text);
  return text;
}

std::vector<std::string> Normalizers::sources() const {
  std::vector<std::string> sources = replaced_;
  for (uint32_t point = 1; point < kNumCodePoints; ++point) {
    const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(point));
    if (category == UTF8PROC_CATEGORY_CN || category == UTF8PROC_CATEGORY_CS) continue;
    sources.push_back(utf8(point));
    append_decompositions(utf8(point), sources);
  }
  append_voiced_kana(sources);
  return sources;
}

std::string Normalizers::character_map() const {
  std::map<std::string, std::string> replacements;
  for (const std::string& source : sources())
    if (std::string target = apply(source); target != source)
      replacements.emplace(source, std::move(target));
  return replacements.empty() ? "" : compile_character_map(replacements);
}

}  // namespace nibble
