// What the report shows of the files themselves: each tensor's distance from the original, and one
// block of weights.
#pragma once

#include <optional>
#include <vector>

#include "eval/report.h"
#include "io/gguf.h"

namespace nibble {

/// Relative RMS error of every tensor that the trained file holds quantized, in file order. All
/// three files must hold the same tensors; memory is bounded by a slab of rows.
std::vector<TensorError> measure_tensor_errors(const GgufFile& original, const GgufFile& baseline,
                                               const GgufFile& trained);

/// From a tensor in the middle of the model, the block whose codes differ most between baseline and
/// trained file. A code is a multiple of the size of the block's step, whatever the step's sign.
/// Nothing where no tensor is in a format of one scale and at most one minimum.
std::optional<BlockSample> sample_block(const GgufFile& original, const GgufFile& baseline,
                                        const GgufFile& trained);

}  // namespace nibble
