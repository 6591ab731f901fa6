// Trained tensors as a GGUF file of their own, as they are: what a run began with, or masters that
// never were on a grid. What ships is written, and checked, by export/export.h.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "quant/mix/plan.h"
#include "training/checkpoint.h"

namespace nibble {

/// The file of a run that holds the model at step 0, quantized as it was then.
inline std::string run_start_path(const std::string& run_dir) { return run_dir + "/start.gguf"; }

/// What a file holds of a tensor: blocks of its type, float32 where that is F32.
std::vector<std::byte> bytes_of(const TrainedTensor& tensor);

/// Writes the source's tensors in their order: those of `tensors` as blocks of their type, float32
/// where that is F32, and all others as they are in the source. Metadata is the source's with the
/// plan's file type. Throws Error naming the tensor, or the system's reason.
void write_model_file(const std::string& path, const GgufFile& source, const Plan& plan,
                      const std::vector<TrainedTensor>& tensors);

}  // namespace nibble
