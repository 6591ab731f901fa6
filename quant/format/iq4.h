// What IQ4_NL and IQ4_XS share: sixteen levels, denser near 0, for groups of 32 weights in 16 bytes
// of nibbles, and llama-quantize's choice of a group's step. Source: ggml/src/ggml-common.h
// (kvalues_iq4nl), ggml/src/ggml-quants.c (quantize_row_iq4_nl_impl, best_index_int8).
#pragma once

#include "quant/format/chunk_bytes.h"
#include "quant/format/codebook.h"
#include "quant/format/ggml_choice.h"
#include "quant/format/lanes.h"
#include "quant/format/packing.h"

namespace nibble {

constexpr int kIq4Group = 32;

using Iq4Levels =
    Codebook<Ties::kUp, -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113>;

NIBBLE_HD int32_t iq4_level(uint32_t code) {
  return table_value<-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113>(
      code);
}

/// 16 levels from weight `first` (0 or 16) of a group.
NIBBLE_HD void unpack_iq4(const uint8_t* qs, int first, int32_t* levels) {
  const ChunkBytes bytes = load_chunk(qs);
  NIBBLE_EACH_LANE (k, kChunk) levels[k] = iq4_level(bytes.from(k) >> first / 4 & 15);
}

/// 32 levels to nibbles: byte j holds weight j in its low and weight j + 16 in its high one.
NIBBLE_HD void pack_iq4(const int8_t* levels, uint8_t* qs) {
  for (int j = 0; j < kIq4Group / 2; ++j) {
    const int low = Iq4Levels::index_of(levels[j]), high = Iq4Levels::index_of(levels[j + 16]);
    qs[j] = static_cast<uint8_t>(low | high << 4);
  }
}

/// Levels of a group for ggml's unrounded step.
NIBBLE_HD void ggml_iq4_levels(const float* x, float step, int8_t* levels) {
  const float inverse = step != 0.0f ? 1.0f / step : 0.0f;
  for (int i = 0; i < kIq4Group; ++i)
    levels[i] = static_cast<int8_t>(round_to_int(Iq4Levels::nearest(inverse * x[i])));
}

/// ggml's sums of weight * level * x and weight * level^2 of a group for each inverse step tried,
/// side by side, each in the order of the weights.
struct Iq4Trials {
  static constexpr int kCount = 16;
  float inverses[kCount];
  float xq[kCount] = {}, qq[kCount] = {};

  NIBBLE_HD void add_up(const float* x, const float* weights) {
    for (int i = 0; i < kIq4Group; ++i) {
      NIBBLE_EACH_LANE (k, kCount) {
        const float level = Iq4Levels::nearest(inverses[k] * x[i]);
        const float weighted = weights[i] * level;
        xq[k] += weighted * x[i];
        qq[k] += weighted * level;
      }
    }
  }
};

/// The step of a group, unrounded: the extreme weight at level 127, then at -134 to -120; each
/// refitted by least squares.
NIBBLE_HD float ggml_iq4_step(const float* x, const float* weights) {
  const float extreme = signed_extreme(x, kIq4Group);
  if (std::fabs(extreme) < kGgmlGroupEpsilon) return 0.0f;
  Iq4Trials trials;
  trials.inverses[0] = 1.0f / (extreme / 127.0f);
  for (int k = 1; k < Iq4Trials::kCount; ++k)
    trials.inverses[k] = static_cast<float>(k - 135) / extreme;
  trials.add_up(x, weights);
  float step = trials.qq[0] > 0.0f ? trials.xq[0] / trials.qq[0] : 0.0f;
  float best = step * trials.xq[0];
  for (int k = 1; k < Iq4Trials::kCount; ++k) {
    const float xq = trials.xq[k], qq = trials.qq[k];
    if (qq > 0.0f && xq * xq > best * qq) {
      step = xq / qq;
      best = step * xq;
    }
  }
  return step;
}

/// What ggml weighs a group's errors with. importance: as the imatrix has it, or nullptr; sigma2:
/// twice the mean square of the block.
NIBBLE_HD void ggml_iq4_weights(const float* x, const float* importance, float sigma2,
                                float* weights) {
  if (importance) return weigh<kIq4Group>(x, importance, sigma2, weights);
  for (int i = 0; i < kIq4Group; ++i) weights[i] = x[i] * x[i];
}

}  // namespace nibble
