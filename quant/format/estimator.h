// The gradient estimators of training on a grid. For weights both are straight-through: dL/dW^
// where rounding alone gave the code, 0 where it was clamped.
#pragma once

namespace nibble {

/// How a scale's gradient is made of dL/dW^, and what becomes of the masters when scales move.
enum class Estimator {
  /// Codes stay: q times grad_out, for a min grad_out itself. Masters are places between levels:
  /// they move along
  /// with their grid (Format::follow), so that no scale's step tips codes over.
  kRelative,
  /// LSQ (Esser et al. 2020): q - w/d in range, q at the clamp; for a min 0 in range, 1 outside.
  /// Masters stay, and
  /// codes change where a level's border passes them.
  kLsq,
};

}  // namespace nibble
