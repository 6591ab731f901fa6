// The instruction sets that the row functions are compiled for. All give the same bits;
// registry.h's functions use the widest that this processor has.
#pragma once

#include <span>
#include <string_view>

#include "quant/format/registry.h"

namespace nibble {

struct Target {
  std::string_view name;  // "generic", "avx2", "avx512"
  bool supported;         // by this processor
  std::span<const Format> formats;
};

/// From the narrowest to the widest; the first is always supported.
std::span<const Target> targets();

namespace generic {
std::span<const Format> formats();
}
#if defined(__x86_64__)
namespace avx2 {
std::span<const Format> formats();
}
namespace avx512 {
std::span<const Format> formats();
}
#endif

}  // namespace nibble
