#include "quant/format/registry.h"

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

std::string names_of_formats() {
  std::string names;
  for (const Format& format : formats()) {
    names += names.empty() ? "" : ", ";
    names += format.name;
  }
  return names;
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

std::span<const Format> formats() {
  static const std::span<const Format> kChosen = [] {
    std::span<const Format> widest;
    for (const Target& target : targets()) {
      if (target.supported) widest = target.formats;
    }
    return widest;
  }();
  return kChosen;
}

const Format* find_format(GgmlType type) {
  for (const Format& format : formats()) {
    if (format.type == type) return &format;
  }
  return nullptr;
}

const Format* find_format(std::string_view name) {
  for (const Format& format : formats()) {
    if (equal_ignoring_case(format.name, name)) return &format;
  }
  return nullptr;
}

const Format& require_format(GgmlType type) {
  const Format* format = find_format(type);
  if (format) return *format;
  const GgmlTypeInfo* info = find_ggml_type(static_cast<uint32_t>(type));
  fail("no codec for tensor type ", static_cast<uint32_t>(type), info ? " (" : "",
       info ? info->name : "", info ? ")" : "", "; nibble has ", names_of_formats());
}

}  // namespace nibble
