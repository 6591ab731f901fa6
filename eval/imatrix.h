// Collects an importance matrix as llama-imatrix does (source: llama.cpp
// tools/imatrix/imatrix.cpp): for each matrix in the model's blocks the sums of the squared
// activations that enter it, over every position of every chunk of a text. The output matrix is
// left out, as it is there unless asked for. Of a stack, each expert's sums are of the positions
// that reached it.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model.h"
#include "quant/mix/imatrix.h"

namespace nibble {

/// `chunks` as they go into the model (begin_with_bos()), all of one length. Squares are float32,
/// sums float64 until they are stored. Shows progress. Throws, naming the tensor, for activations
/// that are not finite. The result has no path and no datasets.
Imatrix collect_imatrix(Model& model, const std::vector<std::vector<int32_t>>& chunks);

}  // namespace nibble
