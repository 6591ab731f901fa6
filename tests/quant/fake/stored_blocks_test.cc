// A FakeQuantizer with stored blocks, for every format that nibble decodes: codes stay, scales
// train where they can, and W^ is what ships.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "quant/fake/quantizer.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 5, kLength = 1024;

torch::Tensor block_tensor(const std::vector<std::byte>& bytes) {
  torch::Tensor blocks =
      torch::empty({kRows, static_cast<int64_t>(bytes.size()) / kRows}, torch::kUInt8);
  std::memcpy(blocks.mutable_data_ptr<uint8_t>(), bytes.data(), bytes.size());
  return blocks;
}

/// What PTQ makes of random weights; of a format that is only decoded, blocks of small numbers.
torch::Tensor random_blocks(const Format& format, int64_t seed) {
  torch::manual_seed(seed);
  if (!format.encode)
    return torch::full({kRows, kLength / format.block_size * format.block_bytes}, 0x11,
                       torch::kUInt8);
  const torch::Tensor weights = torch::randn({kRows, kLength});
  return block_tensor(encode_tensor(format.type, {weights.const_data_ptr<float>(), kRows * kLength},
                                    kLength, {}, EncodeMethod::kGgml));
}

std::vector<std::byte> bytes_of(const torch::Tensor& blocks) {
  const auto* bytes = reinterpret_cast<const std::byte*>(blocks.const_data_ptr<uint8_t>());
  return {bytes, bytes + blocks.numel()};
}

std::vector<int8_t> codes_of(const Format& format, const std::vector<std::byte>& blocks) {
  std::vector<int8_t> codes(kRows * kLength);
  format.codes_of(blocks.data(), codes.data(), kRows * kLength / format.block_size);
  return codes;
}

torch::Tensor materialized(FakeQuantizer& quantizer) {
  torch::Tensor out = torch::full(quantizer.sizes(), std::numeric_limits<float>::quiet_NaN());
  quantizer.materialize(out);
  return out;
}

torch::Tensor decoded(const FakeQuantizer& quantizer) {
  torch::Tensor out = torch::empty(quantizer.sizes());
  decode_tensor(quantizer.format().type, quantizer.blocks(),
                {out.mutable_data_ptr<float>(), static_cast<size_t>(out.numel())});
  return out;
}

bool same_bits(const torch::Tensor& a, const torch::Tensor& b) {
  return a.sizes() == b.sizes() &&
         std::memcmp(a.const_data_ptr<float>(), b.const_data_ptr<float>(), a.nbytes()) == 0;
}

/// As training moves them, some through zero.
void perturb(torch::Tensor& ratios) {
  ratios.add_(torch::randn_like(ratios) * 0.2);
  ratios.select(1, 0).fill_(-0.5f);
  ratios.select(1, 1).fill_(1e-9f);
}

class StoredBlocksTest : public testing::TestWithParam<size_t> {
 protected:
  const Format& format() const { return decoders()[GetParam()]; }
  bool trains() const { return format().num_scales > 0 && !format().has_byte_scales; }
  FakeQuantizer quantizer(int64_t seed, bool learns = true) const {
    return {"w", format(), random_blocks(format(), seed), learns};
  }
};

std::vector<size_t> indices() {
  std::vector<size_t> all(decoders().size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = i;
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, StoredBlocksTest, testing::ValuesIn(indices()),
                         [](const auto& info) { return std::string(decoders()[info.param].name); });

TEST_P(StoredBlocksTest, BeginsWithItsBytes) {
  FakeQuantizer stored = quantizer(1);
  EXPECT_EQ(stored.blocks(), bytes_of(stored.stored_blocks()));
  EXPECT_EQ(stored.sizes(), (std::vector<int64_t>{kRows, kLength}));
  EXPECT_TRUE(stored.is_stored());
  EXPECT_FALSE(stored.weights().defined());
  EXPECT_EQ(stored.scale_ratios().defined(), trains());
  EXPECT_EQ(stored.mode(), trains() ? ScaleMode::kLearned : ScaleMode::kFrozen);
}

TEST_P(StoredBlocksTest, WhatTrainsIsWhatShipsAndCodesStay) {
  for (int64_t seed = 0; seed < 8; ++seed) {
    FakeQuantizer stored = quantizer(seed);
    EXPECT_TRUE(same_bits(materialized(stored), decoded(stored))) << "seed " << seed;
    if (!trains()) continue;
    const std::vector<std::byte> before = stored.blocks();
    perturb(stored.scale_ratios());
    EXPECT_TRUE(same_bits(materialized(stored), decoded(stored))) << "seed " << seed;
    EXPECT_EQ(codes_of(format(), stored.blocks()), codes_of(format(), before));
    EXPECT_NE(stored.blocks(), before) << "scales moved";
  }
}

TEST_P(StoredBlocksTest, GradientsAreThoseOfTheFormatAndAddUp) {
  if (!trains()) GTEST_SKIP() << "no scales that train";
  FakeQuantizer stored = quantizer(2);
  perturb(stored.scale_ratios());
  const torch::Tensor grad_out = torch::randn({kRows, kLength});
  const torch::Tensor scales = stored.scale_ratios().clamp_min(0) * stored.initial_scales();
  torch::Tensor wanted = torch::empty_like(scales);
  format().scale_gradients(bytes_of(stored.stored_blocks()).data(), scales.const_data_ptr<float>(),
                           grad_out.const_data_ptr<float>(), wanted.mutable_data_ptr<float>(),
                           kRows * kLength / format().block_size);
  wanted.mul_(stored.initial_scales());
  torch::Tensor found;
  stored.add_scale_gradients(grad_out, found);
  EXPECT_TRUE(same_bits(found, wanted + 0.0));  // a sum that begins at 0 has no -0
  stored.add_scale_gradients(grad_out, found);
  EXPECT_TRUE(same_bits(found, (wanted + 0.0) * 2));
  EXPECT_THROW(stored.backward(grad_out.clone()), Error);
}

TEST_P(StoredBlocksTest, SameForAnyNumberOfThreads) {
  if (!trains()) GTEST_SKIP() << "no scales that train";
  const int threads = num_threads();
  std::vector<torch::Tensor> outs, grads;
  for (int count : {1, 3}) {
    set_num_threads(count);
    FakeQuantizer stored = quantizer(4);
    outs.push_back(materialized(stored));
    stored.add_scale_gradients(outs.back(), grads.emplace_back());
  }
  set_num_threads(threads);
  EXPECT_TRUE(same_bits(outs[0], outs[1]));
  EXPECT_TRUE(same_bits(grads[0], grads[1]));
}

TEST_P(StoredBlocksTest, TakesOtherBlocks) {
  FakeQuantizer stored = quantizer(5);
  const torch::Tensor ratios = stored.scale_ratios();  // the optimizer has them in its hands
  FakeQuantizer other = quantizer(6);
  stored.copy_blocks(other.stored_blocks());
  EXPECT_EQ(stored.blocks(), other.blocks());
  if (!trains()) return;
  EXPECT_TRUE(same_bits(stored.initial_scales(), other.initial_scales()));
  EXPECT_TRUE(stored.scale_ratios().is_same(ratios));
  EXPECT_THROW(stored.copy_blocks(other.stored_blocks().narrow(0, 0, 2).contiguous()), Error);
}

TEST_P(StoredBlocksTest, WithoutLearningThereAreBlocksAlone) {
  FakeQuantizer stored = quantizer(3, /*learns=*/false), learning = quantizer(3);
  EXPECT_EQ(stored.mode(), ScaleMode::kFrozen);
  EXPECT_FALSE(stored.scale_ratios().defined() || stored.initial_scales().defined());
  EXPECT_EQ(stored.blocks(), learning.blocks());
  torch::Tensor values = torch::empty(stored.sizes()), others = torch::empty(stored.sizes());
  stored.materialize(values);
  learning.materialize(others);
  EXPECT_TRUE(same_bits(values, others));
  EXPECT_THROW(stored.add_scale_gradients(values, others), Error);
}

TEST_P(StoredBlocksTest, RefusesWhatItCannotHold) {
  const auto take = [&](torch::Tensor blocks, bool learns) {
    FakeQuantizer("blk.0.w", format(), std::move(blocks), learns);
  };
  EXPECT_THROW(take(torch::zeros({kRows, format().block_bytes + 1}, torch::kUInt8), true), Error);
  EXPECT_THROW(take(torch::zeros({kRows, kLength}), true), Error);
  if (!trains()) return;
  for (const bool learns : {true, false}) {
    try {  // all bits set: every float16 a NaN
      take(torch::full({kRows, format().block_bytes}, 255, torch::kUInt8), learns);
      ADD_FAILURE() << "took a NaN";
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "tensor 'blk.0.w': a stored scale is not finite");
    }
  }
}

}  // namespace
}  // namespace nibble
