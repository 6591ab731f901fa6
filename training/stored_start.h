// Where training of scales alone (`weights: scales`) starts: stored blocks, of which the codes
// stay.
#pragma once

#include <memory>
#include <string>

#include "model/model.h"
#include "quant/fake/quantizer.h"
#include "quant/format/registry.h"
#include "training/starting_point.h"

namespace nibble {

/// The blocks of a weight as `type`: those that its starting point has or stands for, else what PTQ
/// by `method` makes of its value. Throws Error naming the tensor.
FakeQuantizer stored_quantizer(const Weight& weight, GgmlType type, const StartingPoints& start,
                               EncodeMethod method);

/// A file's model, on the CPU, and its blocks as starting points: of all its weights that are not
/// F32. Throws what load_model() throws.
std::unique_ptr<Model> load_stored(const std::string& path, StartingPoints& start);

}  // namespace nibble
