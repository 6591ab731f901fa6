// What a quantized tensor begins with, where not an encoder alone chose it: for training, and as
// PTQ of its own.
#pragma once

#include <map>
#include <string>

#include "quant/fake/torch.h"

namespace nibble {

/// The state that a FakeQuantizer starts from: masters and scales, or stored blocks.
struct StartingPoint {
  torch::Tensor weights;  // masters, [rows, in] float32
  // Initial scales, [rows, blocks per row * num_scales] float32; undefined where they are dynamic.
  torch::Tensor scales;
  torch::Tensor blocks;  // [rows, bytes of a row] uint8
};

/// By tensor name.
using StartingPoints = std::map<std::string, StartingPoint>;

}  // namespace nibble
