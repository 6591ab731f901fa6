// Scales fitted to codes that stay, under a layer's Hessian: GPTQ fixes scales before it chooses
// codes, and the codes that it chose have better ones. With the codes kept, w^ is linear in each
// scale, so the squared output error (w - w^) H (w - w^)^T has its least value for one step and
// offset, the others fixed, in closed form; of what the block can store, the nearest is taken where
// it is an improvement. Sweeps over the blocks (and in a K-quant over its groups, then its d and
// dmin) come near the least value for all of them together.
#pragma once

#include "quant/fake/torch.h"
#include "quant/format/registry.h"

namespace nibble {

/// A tensor on a format's grid.
struct OnGrid {
  torch::Tensor scales;   // [rows, blocks per row * num_scales] float32, as the blocks store them
  torch::Tensor rounded;  // [rows, in] float32: what codes and scales decode to
};

/// weights [rows, in] float32 on the CPU: what `start` should be near; hessian [in, in]. Each row
/// has the codes of `start`, except that where a sub-scale becomes 0 there is nothing to tell
/// codes apart by. No row's row_errors() (quant/fake/on_grid.h) is above that of `start`.
OnGrid refit_scales(const Format& format, const torch::Tensor& weights,
                    const torch::Tensor& hessian, const OnGrid& start);

}  // namespace nibble
