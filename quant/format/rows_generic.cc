// The row functions for any processor of the architecture.
#define NIBBLE_TARGET generic
#define NIBBLE_TARGET_OPTIONS
#include "quant/format/row_functions.h"
#include "quant/format/targets.h"

namespace nibble::generic {

std::span<const Format> formats() { return kFormats; }

}  // namespace nibble::generic
