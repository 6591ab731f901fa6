#pragma once

#include <string>

#include "training/trainer.h"

namespace nibble {

/// All options that have an effect on what is trained, as one line of JSON: a checkpoint keeps it,
/// and a run is gone on with only where it is the same.
std::string options_json(const TrainOptions& options);

}  // namespace nibble
