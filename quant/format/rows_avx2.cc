// The row functions for AVX2 (2013 and later).
#if defined(__x86_64__)
#define NIBBLE_TARGET avx2
#define NIBBLE_TARGET_OPTIONS __attribute__((target("avx2,f16c")))
#include "quant/format/row_functions.h"
#include "quant/format/targets.h"

namespace nibble::avx2 {

std::span<const Format> formats() { return kFormats; }

}  // namespace nibble::avx2
#endif
