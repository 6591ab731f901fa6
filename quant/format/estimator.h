// The gradient estimators of training on a grid: what becomes of dL/dW^, since rounding itself has
// no slope. An estimator is a row of the table in estimator.cc, made of the terms below; one whose
// formula needs another term has it in gradient_of() (quant/format/uniform.h), for CPU and GPU at
// once.
//
// With x = (w - offset) / step, q the level that x is rounded to and g = dL/dw^:
//   dL/dw      = g where x lies no further than `margin` beyond the outermost levels, else 0
//   dL/dstep   = g (q - x) there with `rounded_part` 1, g q with 0 and outside
//   dL/doffset = 0 there with `rounded_part` 1, g with 0 and outside; times `offset_part`
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct Estimator {
  /// In distances between neighbouring levels; infinite: no weight is ever clamped for good.
  float margin = 0.5f;
  /// 1: codes go with the scales, and masters stay where they are. 0: codes stay.
  float rounded_part = 0.0f;
  /// 0: offsets are not trained.
  float offset_part = 1.0f;
  /// 1: of types with two levels, +-step, dL/dw is g max(0, 2 - 2 |x|).
  float bent_sign = 0.0f;
  /// Masters move along with their grid (Format::follow), so that no scale's step tips codes over.
  bool follows = false;

  /// Codes stay and masters follow: what trains best (docs/results), and the default.
  static const Estimator kRelative;
  /// The straight-through estimator (Bengio et al. 2013, arXiv:1308.3432): every weight gets g.
  static const Estimator kSte;
  /// LSQ (Esser et al. 2020, arXiv:1902.08153). A minimum is not trained.
  static const Estimator kLsq;
  /// LSQ+ (Bhalgat et al. 2020, arXiv:2004.09576): and a minimum is.
  static const Estimator kLsqPlus;
  /// LSQ+ whose range ends half a level beyond the outermost ones, where rounding alone gives them:
  /// so ParetoQ's stretched elastic quantization (Liu et al. 2025, arXiv:2502.02631) has it.
  static const Estimator kStretched;
  /// Of two levels Bi-Real Net's ApproxSign (Liu et al. 2018, arXiv:1808.00278), of other types as
  /// kRelative.
  static const Estimator kSign;
};

inline constexpr Estimator Estimator::kRelative = {0.5f, 0.0f, 1.0f, 0.0f, true};
inline constexpr Estimator Estimator::kSte = {__builtin_inff(), 0.0f, 1.0f, 0.0f, false};
inline constexpr Estimator Estimator::kLsq = {0.0f, 1.0f, 0.0f, 0.0f, false};
inline constexpr Estimator Estimator::kLsqPlus = {0.0f, 1.0f, 1.0f, 0.0f, false};
inline constexpr Estimator Estimator::kStretched = {0.5f, 1.0f, 1.0f, 0.0f, false};
inline constexpr Estimator Estimator::kSign = {0.5f, 0.0f, 1.0f, 1.0f, true};

/// By its name in configurations. Throws Error (usage) with the nearest one.
Estimator parse_estimator(std::string_view name);
std::vector<std::string> estimator_names();

}  // namespace nibble
