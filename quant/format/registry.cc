#include "quant/format/registry.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <string>

#include "base/error.h"
#include "quant/format/targets.h"

namespace nibble {
namespace {

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::toupper(static_cast<unsigned char>(a[i])) !=
        std::toupper(static_cast<unsigned char>(b[i]))) {
      return false;
    }
  }
  return true;
}

std::string names_of(std::span<const Format> formats) {
  std::string names;
  for (const Format& format : formats) {
    names += names.empty() ? "" : ", ";
    names += format.name;
  }
  return names;
}

const Format* find(std::span<const Format> formats, GgmlType type) {
  const auto found = std::find_if(formats.begin(), formats.end(),
                                  [&](const Format& format) { return format.type == type; });
  return found == formats.end() ? nullptr : &*found;
}

/// "12 (Q4_K)".
std::string shown(GgmlType type) {
  const GgmlTypeInfo* info = find_ggml_type(static_cast<uint32_t>(type));
  return concat(static_cast<uint32_t>(type), info ? concat(" (", info->name, ")") : "");
}

}  // namespace

std::span<const Target> targets() {
#if defined(__x86_64__)
  static const std::array kTargets = {
      Target{"generic", true, generic::formats()},
      Target{"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"),
             avx2::formats()},
      Target{"avx512",
             __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"),
             avx512::formats()},
  };
#else
  static const std::array kTargets = {Target{"generic", true, generic::formats()}};
#endif
  return kTargets;
}

std::span<const Format> decoders() {
  static const std::span<const Format> kChosen = [] {
    std::span<const Format> widest;
    for (const Target& target : targets()) {
      if (target.supported) widest = target.formats;
    }
    return widest;
  }();
  return kChosen;
}

std::span<const Format> formats() {
  static const std::span<const Format> kEncoded = [] {
    const auto first_decode_only = std::find_if(
        decoders().begin(), decoders().end(), [](const Format& format) { return !format.encode; });
    return decoders().first(static_cast<size_t>(first_decode_only - decoders().begin()));
  }();
  return kEncoded;
}

const Format* find_format(GgmlType type) { return find(formats(), type); }

const Format* find_format(std::string_view name) {
  for (const Format& format : formats()) {
    if (equal_ignoring_case(format.name, name)) return &format;
  }
  return nullptr;
}

const Format& require_format(GgmlType type) {
  if (const Format* format = find_format(type)) return *format;
  if (const Format* decoder = find_decoder(type)) fail(encode_refusal(decoder->name));
  fail("no codec for tensor type ", shown(type), "; nibble has ", names_of(formats()));
}

const Format* find_decoder(GgmlType type) { return find(decoders(), type); }

const Format& require_decoder(GgmlType type) {
  if (const Format* format = find_decoder(type)) return *format;
  fail("no codec for tensor type ", shown(type), "; nibble has ", names_of(decoders()));
}

std::string encode_refusal(std::string_view name) {
  for (const Format& format : decoders().subspan(formats().size())) {
    if (!equal_ignoring_case(format.name, name)) continue;
    return concat("nibble decodes ", format.name, " but does not encode it; ",
                  type_name(format.nearest), " is the nearest type that it encodes");
  }
  return "";
}

}  // namespace nibble
