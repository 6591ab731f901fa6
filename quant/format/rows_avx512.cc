// The row functions for AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)
#define NIBBLE_TARGET avx512
#define NIBBLE_TARGET_OPTIONS \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#include "quant/format/row_functions.h"
#include "quant/format/targets.h"

namespace nibble::avx512 {

std::span<const Format> formats() { return kFormats; }

}  // namespace nibble::avx512
#endif
