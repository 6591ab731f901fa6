// Methods of PTQ that look at the activations of a text, by name: for a training run to start from,
// and for a file of their own.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf.h"
#include "model/model.h"
#include "quant/mix/plan.h"
#include "quant/mix/quantize_file.h"
#include "training/data.h"
#include "training/starting_point.h"

namespace nibble {

/// "gptq", "awq", "imatrix" and "blockwise" are; other names are not.
bool is_calibrated(std::string_view method);

/// Tokens that go through the model together: enough for the matmuls' full speed; of "blockwise", a
/// training step's.
int64_t calibration_batch_tokens(std::string_view method);

/// The first sequences that training of this seed would see, about `tokens` of them, batch_tokens
/// in each batch, or one sequence.
std::vector<Batch> calibration_batches(const PackedData& data, int64_t tokens, uint64_t seed,
                                       int64_t batch_tokens);

/// Starting points by a calibrated method but "blockwise", after which the model, on the CPU, is
/// what the points are for: AWQ has moved factors in it. Throws what the method throws.
StartingPoints starting_points(std::string_view method, Model& model, const Plan& plan,
                               const std::vector<Batch>& batches);

/// What calibration_batches() draws from.
struct CalibrationText {
  PackedData data;
  int64_t tokens = 0;
  uint64_t seed = 0;
};

/// Writes what quantize_file() would write, with the starting points' codes and scales in the
/// tensors that have some and search in the others; or, by "blockwise", what training/blockwise.h
/// trains, a block at a time. Throws what load_model(), starting_points(), Blockwise and
/// quantize_file() throw.
QuantizeStats quantize_calibrated(const GgufFile& source, const Plan& plan,
                                  const std::string& method, const CalibrationText& text,
                                  const std::string& out_path);

}  // namespace nibble
