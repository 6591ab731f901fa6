// What a quantized tensor begins with, where not an encoder alone chose it: for training, and as
// PTQ of its own.
#pragma once

#include <map>
#include <string>

#include "quant/fake/torch.h"

namespace nibble {

/// The state that a FakeQuantizer starts from: masters and scales, or stored blocks.
struct StartingPoint {
  torch::Tensor weights;  // masters, float32, of the weight's shape
  // Initial scales, [rows, blocks per row * num_scales] float32, of all experts' rows; undefined
  // where they are dynamic.
  torch::Tensor scales;
  torch::Tensor blocks;  // uint8, of the weight's shape, but for the last size: bytes of a row
};

/// By tensor name.
using StartingPoints = std::map<std::string, StartingPoint>;

}  // namespace nibble
