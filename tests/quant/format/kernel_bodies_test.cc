// The code of the CUDA kernels, run on the CPU over every (block, lane) pair of their launches.
#include "quant/format/kernel_bodies.h"

#include <gtest/gtest.h>

#include <array>

#include "format_checks.h"

#define NIBBLE_FORMAT(F)
#include "quant/format/formats.def"
#undef NIBBLE_FORMAT

namespace nibble {
namespace {

/// What memory holds before a kernel writes it: a NaN with this payload.
constexpr uint32_t kUnwritten = 0x7fc12345u;

std::vector<float> unwritten(size_t count) {
  return std::vector<float>(count, float_of(kUnwritten));
}

/// As backward_kernel: the lanes' sums folded per group, then the scales.
template <class F>
void run_backward(int64_t num_blocks, const float* weights, const float* scales,
                  const float* grad_out, float* grad_weights, float* grad_scales) {
  for (int64_t block = 0; block < num_blocks; ++block) {
    std::array<float, kBackwardLanes<F>> steps, offsets;
    for (int lane = 0; lane < kBackwardLanes<F>; ++lane) {
      const LaneSums sums = backward_lane<F>(block, lane, weights, scales, grad_out, grad_weights);
      steps[lane] = sums.step;
      offsets[lane] = sums.offset;
    }
    if constexpr (F::kNumScales > 0) {
      float step_sums[kNumGroups<F>], offset_sums[kNumGroups<F>];
      for (int group = 0; group < kNumGroups<F>; ++group) {
        step_sums[group] = fold_sums(steps.data() + group * kChunk);
        offset_sums[group] = fold_sums(offsets.data() + group * kChunk);
      }
      backward_scales<F>(block, scales, step_sums, offset_sums, grad_scales);
    }
  }
}

template <class F>
void check_decode(const Format& format, const std::vector<std::byte>& blocks, int64_t num_blocks) {
  const std::vector<float> expected = decode(format, blocks);
  std::vector<std::byte> shifted(blocks.size() + 1);
  std::copy(blocks.begin(), blocks.end(), shifted.begin() + 1);
  std::vector<float> out = unwritten(expected.size());
  std::vector<Float16> half(expected.size());
  std::vector<Bfloat16> brain(expected.size());
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int lane = 0; lane < kDecodeLanes<F>; ++lane) {
      const int64_t i = block * F::kBlockSize + lane;
      ASSERT_EQ(bits_of(out[i]), kUnwritten) << "written twice";
      decode_lane<F>(block, lane, shifted.data() + 1, out.data());
      decode_lane<F>(block, lane, shifted.data() + 1, half.data());
      decode_lane<F>(block, lane, shifted.data() + 1, brain.data());
      ASSERT_EQ(half[i].bits, float_to_float16(expected[i]));
      ASSERT_EQ(brain[i].bits, float_to_bfloat16(expected[i]));
    }
  }
  EXPECT_EQ(compare_bits(out, expected, "decode"), "");
}

/// num_blocks: any, as the last CTA of a launch is seldom full.
template <class F>
void check_bodies(int64_t num_blocks) {
  const Format& format = require_format(F::kType);
  std::vector<float> weights = gaussian_row(static_cast<uint32_t>(num_blocks), 0.02f);
  weights.resize(num_blocks * F::kBlockSize);
  const std::vector<float> scales = trained_scales(format, weights, 0.6f, 3);
  const std::vector<float> snapped = snap(format, scales);
  const std::vector<std::byte> expected = encode_with(format, weights, snapped);
  check_decode<F>(format, expected, num_blocks);

  std::vector<std::byte> blocks(expected.size());
  std::vector<float> out = unwritten(weights.size());
  for (int64_t block = 0; block < num_blocks; ++block) {
    encode_with_lane<F>(block, weights.data(), snapped.data(), blocks.data());
    for (int lane = 0; lane < F::kBlockSize; ++lane) {
      ASSERT_EQ(bits_of(out[block * F::kBlockSize + lane]), kUnwritten) << "written twice";
      fake_quantize_lane<F>(block, lane, weights.data(), scales.data(), out.data());
    }
  }
  EXPECT_EQ(blocks, expected);
  EXPECT_EQ(compare_bits(out, fake_quantize(format, weights, scales), "fake_quantize"), "");

  std::vector<float> grad_out = gaussian_row(5, 1.0f);
  grad_out.resize(weights.size());
  std::vector<float> grad_weights = unwritten(weights.size()),
                     grad_scales = unwritten(scales.size());
  std::vector<float> row_weights(weights.size()), row_scales(scales.size());
  run_backward<F>(num_blocks, weights.data(), scales.data(), grad_out.data(), grad_weights.data(),
                  grad_scales.data());
  format.fake_quantize_backward(weights.data(), scales.data(), grad_out.data(), row_weights.data(),
                                row_scales.data(), num_blocks);
  EXPECT_EQ(compare_bits(grad_weights, row_weights, "dL/dW"), "");
  EXPECT_EQ(compare_bits(grad_scales, row_scales, "dL/dscales"), "");
}

/// Blocks beyond 2^32 weights: the bodies are handed a base so far below the buffer that only
/// 64-bit offsets reach it.
template <class F>
void check_far_block() {
  const Format& format = require_format(F::kType);
  const int64_t far = (int64_t{1} << 36) / F::kBlockSize;
  const std::vector<float> weights(F::kBlockSize, 0.3f),
      scales = trained_scales(format, weights, 0.0f, 0);
  const std::vector<std::byte> blocks = encode_with(format, weights, scales);
  std::vector<float> out(F::kBlockSize);
  const auto below = [&](const auto* pointer, int64_t bytes) {
    return reinterpret_cast<std::decay_t<decltype(pointer)>>(reinterpret_cast<uintptr_t>(pointer) -
                                                             bytes);
  };
  const auto* far_blocks = below(blocks.data(), far * format.block_bytes);
  auto* far_out = const_cast<float*>(below(out.data(), far * F::kBlockSize * 4));
  for (int lane = 0; lane < kDecodeLanes<F>; ++lane) decode_lane<F>(far, lane, far_blocks, far_out);
  EXPECT_EQ(out, decode(format, blocks));
}

#define NIBBLE_FORMAT(F)                                                        \
  TEST(KernelBodies, F) {                                                       \
    for (const int64_t num_blocks : {1, 2, 7, 16}) check_bodies<F>(num_blocks); \
    check_far_block<F>();                                                       \
  }
#include "quant/format/formats.def"
#undef NIBBLE_FORMAT

}  // namespace
}  // namespace nibble
