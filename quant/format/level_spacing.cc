#include "quant/format/level_spacing.h"

#define NIBBLE_FORMAT(F)
#include "quant/format/formats.def"
#undef NIBBLE_FORMAT

namespace nibble {
namespace {

template <class F>
float spacing_of() {
  if constexpr (F::kNumScales == 0) {
    return 0.0f;
  } else {
    constexpr int kLast = F::Levels::kCount - 1;
    return static_cast<float>(F::Levels::at(kLast) - F::Levels::at(0)) / kLast;
  }
}

}  // namespace

float level_spacing(GgmlType type) {
#define NIBBLE_FORMAT(F) \
  if (type == F::kType) return spacing_of<F>();
#include "quant/format/formats.def"
#undef NIBBLE_FORMAT
  return 0.0f;
}

}  // namespace nibble
