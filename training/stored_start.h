// Where training of scales alone (`weights: scales`) starts: stored blocks, of which the codes
// stay.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/model.h"
#include "quant/fake/quantizer.h"
#include "quant/format/registry.h"
#include "training/starting_point.h"

namespace nibble {

/// A copy of blocks, as FakeQuantizer stores them for a weight of these sizes.
torch::Tensor block_tensor(std::span<const std::byte> bytes, std::vector<int64_t> sizes);

/// The blocks of a weight as `type`: those that its starting point has or stands for, else what PTQ
/// by `method` makes of its value. Its scales train if `learns`. Throws Error naming the tensor.
FakeQuantizer stored_quantizer(const Weight& weight, GgmlType type, bool learns,
                               const StartingPoints& start, EncodeMethod method);

/// A file's model, on the CPU, whose matrices stay in the file (ModelPart::on_use), and its blocks
/// as starting points: of all its weights that are not F32. Throws what load_model() throws.
std::unique_ptr<Model> load_stored(const std::string& path, StartingPoints& start);

}  // namespace nibble
