// The weights that benchmarks of block formats encode.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace nibble {

/// `count` Gaussian numbers such as weights are, from one seed. They repeat after a million:
/// drawing more takes longer than the benchmark.
inline std::vector<float> draw_gaussian_weights(int64_t count) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<float> period((1 << 20) + 64), all(count);
  for (float& x : period) x = normal(generator);
  for (size_t i = 0; i < all.size(); ++i) all[i] = period[i % period.size()];
  return all;
}

}  // namespace nibble
