// Block-wise reconstruction as PTQ of its own: from a file to a file, a block at a time.
#pragma once

#include <string>
#include <vector>

#include "io/gguf.h"
#include "model/model.h"
#include "quant/mix/plan.h"
#include "quant/mix/quantize_file.h"

namespace nibble {

/// Writes what quantize_file() would write, with the tensors that Blockwise trains from searched
/// scales, on the CPU. In memory are one block and its training state; more where the file does not
/// have its blocks in their order. The plan is one of check_encodable(). Throws what Blockwise and
/// quantize_file() throw.
QuantizeStats quantize_blockwise(const GgufFile& source, const Plan& plan,
                                 const std::vector<Batch>& batches, const std::string& out_path);

}  // namespace nibble
