// How far a format's levels are apart.
#pragma once

#include "io/ggml_type.h"

namespace nibble {

/// Mean distance between neighbouring levels in steps (Format::steps_of): 1 where they are
/// consecutive integers, 2 for Q1_0's -1 and 1, 16 for IQ4_NL's codebook. 0 for a type without
/// levels, or that is not encoded.
float level_spacing(GgmlType type);

}  // namespace nibble
