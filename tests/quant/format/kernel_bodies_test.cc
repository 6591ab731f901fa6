// The code of the CUDA kernels, run on the CPU over every lane of their launches: each weight is
// written once and only by its lane, at aligned and other addresses, beyond 2^32 weights too.
#include "quant/format/kernel_bodies.h"

#include <gtest/gtest.h>

#include <algorithm>
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

/// Numbers of `count` at an address that is not aligned to more than themselves, as a caller may
/// hand them over where lanes take single weights.
template <class T>
class Misaligned {
 public:
  explicit Misaligned(const std::vector<T>& values) : memory_(values.size() + 32) {
    while ((reinterpret_cast<uintptr_t>(memory_.data() + shift_) + sizeof(T)) % kVectorBytes != 0)
      ++shift_;
    std::copy(values.begin(), values.end(), data());
    size_ = values.size();
  }
  T* data() { return memory_.data() + shift_ + 2; }
  std::vector<T> values() { return {data(), data() + size_}; }

 private:
  std::vector<T> memory_;
  size_t shift_ = 0, size_ = 0;
};

/// As backward_kernel: the lanes' sums folded per group, then the scales.
template <class F, int kWeights>
void run_backward(int64_t num_blocks, const float* weights, const TrainedScales& scales,
                  const float* grad_out, float* grad_weights, float* grad_scales,
                  Estimator estimator) {
  constexpr int kLanes = kBackwardLanes<F, kWeights>;
  for (int64_t block = 0; block < num_blocks; ++block) {
    std::array<float, kLanes * kWeights> steps, offsets;
    for (int lane = 0; lane < kLanes; ++lane) {
      LaneSums<kWeights> sums;
      backward_lane<F, kWeights>(block, lane, weights, scales, grad_out, grad_weights, &sums,
                                 estimator);
      std::copy(sums.step, sums.step + kWeights, steps.begin() + lane * kWeights);
      std::copy(sums.offset, sums.offset + kWeights, offsets.begin() + lane * kWeights);
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

/// What a lane writes: its own weights, each for the first time. `out` holds kUnwritten before.
template <int kWeights>
void expect_fresh(const float* out, int64_t lane, int64_t num_weights, const auto& write) {
  const std::vector<float> before(out, out + num_weights);
  write();
  for (int64_t i = 0; i < num_weights; ++i) {
    const bool own = i / kWeights == lane;
    if (own)
      ASSERT_EQ(bits_of(before[i]), kUnwritten) << "weight " << i << " is written twice";
    else
      ASSERT_EQ(bits_of(out[i]), bits_of(before[i])) << "lane " << lane << " writes weight " << i;
  }
}

template <class F, int kWeights>
void check_decode(const std::vector<std::byte>& blocks, const std::vector<float>& expected) {
  Misaligned<std::byte> shifted(blocks);
  const auto num_weights = static_cast<int64_t>(expected.size());
  std::vector<float> out = unwritten(expected.size());
  for (int64_t lane = 0; lane < num_lanes(num_weights, kWeights); ++lane)
    expect_fresh<kWeights>(out.data(), lane, num_weights, [&] {
      decode_lane<F, kWeights>(lane, num_weights, shifted.data(), out.data());
    });
  EXPECT_EQ(compare_bits(out, expected, "decode"), "");
}

template <class F, int kWeights, class Out>
void check_decode_to(const std::vector<std::byte>& blocks, const std::vector<float>& expected,
                     const auto& convert) {
  const auto num_weights = static_cast<int64_t>(expected.size());
  std::vector<Out> out(expected.size());
  for (int64_t lane = 0; lane < num_lanes(num_weights, kWeights); ++lane)
    decode_lane<F, kWeights>(lane, num_weights, blocks.data(), out.data());
  for (int64_t i = 0; i < num_weights; ++i) ASSERT_EQ(out[i].bits, convert(expected[i])) << i;
}

template <class F>
void check_encode(const std::vector<float>& weights, const std::vector<float>& snapped,
                  const std::vector<std::byte>& expected) {
  const Format& format = require_format(F::kType);
  const int64_t num_blocks = blocks_in(format, weights);
  const auto with_lanes = [&](const auto& lane_of) {
    std::vector<std::byte> blocks(expected.size());
    for (int64_t block = 0; block < num_blocks; ++block) lane_of(block, blocks.data());
    return blocks;
  };
  EXPECT_EQ(with_lanes([&](int64_t block, std::byte* to) {
              encode_with_lane<F>(block, weights.data(), snapped.data(), to);
            }),
            expected);
  EXPECT_EQ(with_lanes([&](int64_t block, std::byte* to) {
              encode_lane<F, EncodeMethod::kRtn>(block, weights.data(), to);
            }),
            encode(format, weights, {}, EncodeMethod::kRtn));
  EXPECT_EQ(with_lanes([&](int64_t block, std::byte* to) {
              encode_lane<F, EncodeMethod::kGgml>(block, weights.data(), to);
            }),
            encode(format, weights, {}, EncodeMethod::kGgml));
  EXPECT_EQ(with_lanes([&](int64_t block, std::byte* to) {
              encode_lane<F, EncodeMethod::kSearch>(block, weights.data(), to);
            }),
            encode(format, weights, {}, EncodeMethod::kSearch));
}

/// initial * max(ratio, 0), as training has it.
std::vector<float> scaled(const std::vector<float>& initial, const std::vector<float>& ratios) {
  std::vector<float> scales = initial;
  for (size_t i = 0; i < scales.size(); ++i) scales[i] *= std::max(ratios[i], 0.0f);
  return scales;
}

template <class F, int kWeights>
void check_training(const std::vector<float>& row, const std::vector<float>& initial,
                    const std::vector<float>& ratios) {
  const Format& format = require_format(F::kType);
  const int64_t num_blocks = blocks_in(format, row);
  const auto num_weights = static_cast<int64_t>(row.size());
  const std::vector<float> scales = scaled(initial, ratios);
  std::vector<float> gradients = gaussian_row(5, 1.0f);
  gradients.resize(row.size());
  // Single weights need no alignment; vectors get what the allocator gives, which is aligned.
  Misaligned<float> odd_weights(row), odd_gradients(gradients);
  const float* weights = kWeights == 1 ? odd_weights.data() : row.data();
  const float* grad_out = kWeights == 1 ? odd_gradients.data() : gradients.data();

  const TrainedScales with_ratios = {initial.data(), ratios.data()}, plain = {scales.data()};
  for (const TrainedScales& trained : {with_ratios, plain}) {
    std::vector<float> out = unwritten(row.size());
    for (int64_t lane = 0; lane < num_lanes(num_weights, kWeights); ++lane)
      expect_fresh<kWeights>(out.data(), lane, num_weights, [&] {
        fake_quantize_lane<F, kWeights>(lane, num_weights, weights, trained, out.data());
      });
    EXPECT_EQ(compare_bits(out, fake_quantize(format, row, scales), "fake_quantize"), "");

    for (const std::string& name : estimator_names()) {
      const Estimator estimator = parse_estimator(name);
      std::vector<float> grad_weights = unwritten(row.size()),
                         grad_scales = unwritten(scales.size());
      run_backward<F, kWeights>(num_blocks, weights, trained, grad_out, grad_weights.data(),
                                grad_scales.data(), estimator);
      std::vector<float> row_weights(row.size()), row_scales(scales.size());
      format.fake_quantize_backward(row.data(), scales.data(), gradients.data(), row_weights.data(),
                                    row_scales.data(), num_blocks, estimator);
      if (trained.ratios)
        for (size_t i = 0; i < row_scales.size(); ++i) row_scales[i] *= initial[i];
      EXPECT_EQ(compare_bits(grad_weights, row_weights, "dL/dW"), "");
      EXPECT_EQ(compare_bits(grad_scales, row_scales, "dL/dscales"), "");

      std::vector<float> in_place = gradients;
      run_backward<F, kWeights>(num_blocks, weights, trained, in_place.data(), in_place.data(),
                                grad_scales.data(), estimator);
      EXPECT_EQ(compare_bits(in_place, row_weights, "dL/dW in place of dL/dW^"), "");
    }
    if constexpr (F::kNumScales > 0) {
      const TrainedScales before = {initial.data()};
      Misaligned<float> odd(row);
      std::vector<float> even = row, expected = row;
      float* moved = kWeights == 1 ? odd.data() : even.data();
      for (int64_t lane = 0; lane < num_weights / kWeights; ++lane)
        follow_lane<F, kWeights>(lane, moved, before, trained);
      format.follow(expected.data(), initial.data(), scales.data(), num_blocks);
      EXPECT_EQ(compare_bits(kWeights == 1 ? odd.values() : even, expected, "follow"), "");
    }
  }
}

/// num_blocks: any, as the last CTA of a launch is seldom full, nor the last lane of formats whose
/// blocks are single weights.
template <class F>
void check_bodies(int64_t num_blocks) {
  const Format& format = require_format(F::kType);
  std::vector<float> weights = gaussian_row(static_cast<uint32_t>(num_blocks), 0.02f);
  weights.resize(num_blocks * F::kBlockSize);
  const std::vector<float> initial = trained_scales(format, weights, 0.0f, 0);
  std::vector<float> ratios = gaussian_row(3, 0.4f);
  ratios.resize(initial.size());
  for (float& ratio : ratios) ratio += 1.0f;
  if (!ratios.empty()) ratios[0] = num_blocks % 2 ? -0.5f : -0.0f;
  const std::vector<float> snapped = snap(format, scaled(initial, ratios));
  const std::vector<std::byte> blocks = encode_with(format, weights, snapped);
  const std::vector<float> decoded = decode(format, blocks);
  check_decode<F, 1>(blocks, decoded);
  check_decode<F, kVectorFloats>(blocks, decoded);
  const auto to_float16 = [](float x) { return float_to_float16(x); };
  const auto to_bfloat16 = [](float x) { return float_to_bfloat16(x); };
  check_decode_to<F, 1, Float16>(blocks, decoded, to_float16);
  check_decode_to<F, 8, Float16>(blocks, decoded, to_float16);
  check_decode_to<F, 1, Bfloat16>(blocks, decoded, to_bfloat16);
  check_decode_to<F, 8, Bfloat16>(blocks, decoded, to_bfloat16);
  check_encode<F>(weights, snapped, blocks);
  check_training<F, 1>(weights, initial, ratios);
  check_training<F, kVectorFloats>(weights, initial, ratios);
}

/// The same address less `bytes`: what a far index brings back to where the numbers are.
template <class Pointer>
Pointer below(Pointer pointer, int64_t bytes) {
  return reinterpret_cast<Pointer>(reinterpret_cast<uintptr_t>(pointer) - bytes);
}

/// Blocks beyond 2^32 weights: the bodies are handed bases so far below the buffers that only
/// 64-bit offsets reach them.
template <class F, int kWeights>
void check_far_block() {
  const Format& format = require_format(F::kType);
  constexpr int64_t kFirst = int64_t{1} << 36, kFar = kFirst / F::kBlockSize;
  // Formats of single weights: as many as one lane takes.
  constexpr int kCount = std::max(F::kBlockSize, kWeights);
  constexpr int64_t kTotal = kFirst + kCount;
  const std::vector<float> weights(kCount, 0.3f);
  const std::vector<float> scales = trained_scales(format, weights, 0.0f, 0);
  std::vector<std::byte> blocks = encode_with(format, weights, scales);
  const std::vector<std::byte> expected = blocks;
  std::vector<float> out(kCount), grad_scales(scales.size());
  const std::byte* far_blocks = below(blocks.data(), kFar * format.block_bytes);
  const float* far_weights = below(weights.data(), kFirst * 4);
  float* far_out = below(out.data(), kFirst * 4);
  const TrainedScales far_scales = {below(scales.data(), kFar * F::kNumScales * 4)};

  for (int64_t lane = kFirst / kWeights; lane * kWeights < kTotal; ++lane)
    decode_lane<F, kWeights>(lane, kTotal, far_blocks, far_out);
  EXPECT_EQ(out, decode(format, blocks));
  std::fill(out.begin(), out.end(), 0.0f);
  for (int64_t lane = kFirst / kWeights; lane * kWeights < kTotal; ++lane)
    fake_quantize_lane<F, kWeights>(lane, kTotal, far_weights, far_scales, far_out);
  EXPECT_EQ(out, fake_quantize(format, weights, scales));

  std::fill(blocks.begin(), blocks.end(), std::byte{0});
  for (int64_t block = kFar; block < kFar + kCount / F::kBlockSize; ++block) {
    encode_with_lane<F>(block, far_weights, far_scales.initial,
                        below(blocks.data(), kFar * format.block_bytes));
    if constexpr (F::kNumScales > 0) {
      LaneSums<kWeights> sums;
      for (int lane = 0; lane < kBackwardLanes<F, kWeights>; ++lane)
        backward_lane<F, kWeights>(block, lane, far_weights, far_scales, far_weights, far_out,
                                   &sums, Estimator::kRelative);
      const float step_sums[kNumGroups<F>] = {7.0f}, offset_sums[kNumGroups<F>] = {5.0f};
      backward_scales<F>(block, far_scales, step_sums, offset_sums,
                         below(grad_scales.data(), kFar * F::kNumScales * 4));
      std::vector<float> wanted(grad_scales.size());
      F::scale_gradients(snap(format, scales).data(), step_sums, offset_sums, wanted.data());
      EXPECT_EQ(grad_scales, wanted);
    }
  }
  EXPECT_EQ(blocks, expected);
}

#define NIBBLE_FORMAT(F)                                                           \
  TEST(KernelBodies, F) {                                                          \
    for (const int64_t num_blocks : {1, 2, 3, 7, 16}) check_bodies<F>(num_blocks); \
    check_far_block<F, 1>();                                                       \
    check_far_block<F, kVectorFloats>();                                           \
  }
#include "quant/format/formats.def"
#undef NIBBLE_FORMAT

}  // namespace
}  // namespace nibble
