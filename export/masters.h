// What a run trained before any rounding: its masters, float32, for training that goes on elsewhere
// or another rounding.
#pragma once

#include "training/checkpoint.h"

namespace nibble {

/// A checkpoint whose tensors are unquantized, their weights the masters of `trained`, whose memory
/// they share; what was not trained keeps the source's type. For export_checkpoint(). Throws for a
/// tensor that was trained as stored codes: it has no masters.
Checkpoint masters_of(const Checkpoint& trained);

}  // namespace nibble
