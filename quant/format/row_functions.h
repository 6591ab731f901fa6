// The loops over whole rows behind struct Format, as templates over a format F, compiled once per
// instruction set: rows_<target>.cc defines NIBBLE_TARGET (the namespace) and NIBBLE_TARGET_OPTIONS
// (a function attribute), then includes this. Everything that these functions call is inlined into
// them, so no code for a wider instruction set leaves its namespace.
#include <algorithm>
#include <array>
#include <type_traits>

#include "quant/format/encode.h"
#include "quant/format/registry.h"
#include "quant/format/stream.h"

#define NIBBLE_FORMAT(F)
#include "quant/format/formats.def"
#undef NIBBLE_FORMAT

namespace nibble::NIBBLE_TARGET {

/// Weights that are decoded in the first-level cache and then stored around all caches.
constexpr int kStreamedPiece = 256;

/// decode() of many weights: caches could not keep them until they are used, and a store into a
/// cache reads the line from memory first. out: aligned to 16 bytes.
template <class F>
NIBBLE_TARGET_OPTIONS void decode_streamed(const std::byte* blocks, float* out,
                                           int64_t num_blocks) {
  using Block = typename F::Block;
  constexpr int64_t kBlocks = kStreamedPiece / F::kBlockSize;
  alignas(64) float piece[kStreamedPiece];
  for (int64_t first = 0; first < num_blocks; first += kBlocks) {
    const int64_t count = std::min(kBlocks, num_blocks - first);
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i)
      F::decode(block_at<Block>(blocks + (first + i) * sizeof(Block)), piece + i * F::kBlockSize);
    stream(piece, count * F::kBlockSize, out + first * F::kBlockSize);
  }
  finish_streams();
}

template <class F>
NIBBLE_TARGET_OPTIONS void decode(const std::byte* blocks, float* out, int64_t num_blocks) {
  using Block = typename F::Block;
  if (num_blocks * F::kBlockSize >= kStreamedWeights && can_stream(out))
    return decode_streamed<F>(blocks, out, num_blocks);
#pragma GCC ivdep
  for (int64_t i = 0; i < num_blocks; ++i) {
    F::decode(block_at<Block>(blocks + i * sizeof(Block)), out + i * F::kBlockSize);
  }
}

template <class F>
NIBBLE_TARGET_OPTIONS void encode(const float* weights, const float* importance, std::byte* blocks,
                                  int64_t length, EncodeMethod method) {
  encode_row<F>(weights, importance, blocks, length, method);
}

template <class F>
NIBBLE_TARGET_OPTIONS void scales_of(const std::byte* blocks, float* scales, int64_t num_blocks) {
  using Block = typename F::Block;
  for (int64_t i = 0; i < num_blocks; ++i) {
    F::scales_of(block_at<Block>(blocks + i * sizeof(Block)), scales + i * F::kNumScales);
  }
}

template <class F>
NIBBLE_TARGET_OPTIONS void snap(const float* scales, float* snapped, int64_t num_blocks) {
  for (int64_t i = 0; i < num_blocks; ++i) {
    F::snap(scales + i * F::kNumScales, snapped + i * F::kNumScales);
  }
}

template <class F>
NIBBLE_TARGET_OPTIONS void encode_with(const float* weights, const float* snapped,
                                       std::byte* blocks, int64_t num_blocks) {
  using Block = typename F::Block;
  for (int64_t i = 0; i < num_blocks; ++i) {
    F::encode_with(weights + i * F::kBlockSize, snapped + i * F::kNumScales,
                   block_at<Block>(blocks + i * sizeof(Block)));
  }
}

template <class F>
NIBBLE_TARGET_OPTIONS void fake_quantize(const float* weights, const float* scales, float* out,
                                         int64_t num_blocks) {
#pragma GCC ivdep
  for (int64_t i = 0; i < num_blocks; ++i) {
    float snapped[F::kNumScales + 1];  // + 1: formats without scales
    F::snap(scales + i * F::kNumScales, snapped);
    F::fake_quantize(weights + i * F::kBlockSize, snapped, out + i * F::kBlockSize);
  }
}

template <class F>
NIBBLE_TARGET_OPTIONS void fake_quantize_backward(const float* weights, const float* scales,
                                                  const float* grad_out, float* grad_weights,
                                                  float* grad_scales, int64_t num_blocks,
                                                  Estimator estimator) {
#pragma GCC ivdep
  for (int64_t i = 0; i < num_blocks; ++i) {
    float snapped[F::kNumScales + 1];
    F::snap(scales + i * F::kNumScales, snapped);
    const int64_t first = i * F::kBlockSize;
    F::fake_quantize_backward(weights + first, snapped, grad_out + first, grad_weights + first,
                              grad_scales + i * F::kNumScales, estimator);
  }
}

template <class F>
NIBBLE_TARGET_OPTIONS void follow(float* weights, const float* from, const float* to,
                                  int64_t num_blocks) {
#pragma GCC ivdep
  for (int64_t i = 0; i < num_blocks; ++i) {
    float before[F::kNumScales], after[F::kNumScales];
    F::snap(from + i * F::kNumScales, before);
    F::snap(to + i * F::kNumScales, after);
    F::follow(weights + i * F::kBlockSize, before, after);
  }
}

template <class F>
constexpr bool has_even_levels() {
  if constexpr (F::kNumScales == 0)
    return false;
  else
    return std::is_same_v<typename F::Levels, EvenLevels<F>>;
}

template <class F>
NIBBLE_TARGET_OPTIONS void codes_of(const std::byte* blocks, int8_t* codes, int64_t num_blocks) {
  using Block = typename F::Block;
  for (int64_t i = 0; i < num_blocks; ++i) {
    const Block& block = block_at<Block>(blocks + i * sizeof(Block));
    for (int first = 0; first < F::kBlockSize; first += kChunk) {
      int32_t chunk[kChunk];
      F::unpack(block, first, chunk);
      for (int k = 0; k < kChunk; ++k)
        codes[i * F::kBlockSize + first + k] = static_cast<int8_t>(chunk[k]);
    }
  }
}

template <class F>
NIBBLE_TARGET_OPTIONS void steps_of(const std::byte* blocks, float* steps, int64_t num_blocks) {
  using Block = typename F::Block;
  constexpr int kGroups = F::kBlockSize / F::kGroupSize;
  for (int64_t i = 0; i < num_blocks; ++i) {
    const Block& block = block_at<Block>(blocks + i * sizeof(Block));
    if constexpr (kDecodeOnly<F>) {
      for (int group = 0; group < kGroups; ++group)
        steps[i * kGroups + group] = F::step(block, group);
    } else {
      float scales[F::kNumScales];
      F::scales_of(block, scales);
      for (int group = 0; group < kGroups; ++group)
        steps[i * kGroups + group] = F::grid(scales, group).step;
    }
  }
}

template <class F>
NIBBLE_TARGET_OPTIONS void set_scales(const float* scales, std::byte* blocks, int64_t num_blocks) {
  using Block = typename F::Block;
  for (int64_t i = 0; i < num_blocks; ++i) {
    float snapped[F::kNumScales];
    F::snap(scales + i * F::kNumScales, snapped);
    F::set_scales(block_at<Block>(blocks + i * sizeof(Block)), snapped);
  }
}

template <class F>
NIBBLE_TARGET_OPTIONS void scale_gradients(const std::byte* blocks, const float* scales,
                                           const float* grad_out, float* grad_scales,
                                           int64_t num_blocks) {
  using Block = typename F::Block;
  for (int64_t i = 0; i < num_blocks; ++i) {
    float snapped[F::kNumScales];
    F::snap(scales + i * F::kNumScales, snapped);
    F::code_gradients(block_at<Block>(blocks + i * sizeof(Block)), snapped,
                      grad_out + i * F::kBlockSize, grad_scales + i * F::kNumScales);
  }
}

template <class F>
constexpr Format format_row(std::string_view name) {
  Format row = {F::kType,
                name,
                F::kBlockSize,
                sizeof(typename F::Block),
                F::kNumScales,
                F::kFtype,
                F::kHasByteScales,
                has_even_levels<F>(),
                decode<F>,
                encode<F>,
                scales_of<F>,
                snap<F>,
                encode_with<F>,
                fake_quantize<F>,
                fake_quantize_backward<F>,
                nullptr,
                nullptr,
                nullptr,
                nullptr,
                nullptr,
                F::kGroupSize,
                F::kType};
  if constexpr (F::kNumScales > 0) {
    row.follow = follow<F>;
    row.codes_of = codes_of<F>;
    row.steps_of = steps_of<F>;
    row.set_scales = set_scales<F>;
    row.scale_gradients = scale_gradients<F>;
  }
  return row;
}

template <class F>
constexpr Format decode_only_row(std::string_view name) {
  Format row{};
  row.type = F::kType;
  row.name = name;
  row.block_size = F::kBlockSize;
  row.block_bytes = sizeof(typename F::Block);
  row.ftype = F::kFtype;
  row.decode = decode<F>;
  row.codes_of = codes_of<F>;
  row.steps_of = steps_of<F>;
  row.group_size = F::kGroupSize;
  row.nearest = F::kNearest;
  return row;
}

#define NIBBLE_FORMAT(F) format_row<F>(#F),
#define NIBBLE_DECODE_ONLY(F) decode_only_row<F>(#F),
constexpr std::array kFormats = {
#include "quant/format/formats.def"
};
#undef NIBBLE_DECODE_ONLY
#undef NIBBLE_FORMAT

}  // namespace nibble::NIBBLE_TARGET
