// Ways of training masters: what the optimizer moves, its gradients against autograd's, and what
// the masters are after a step.
#include "quant/fake/master_training.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "base/error.h"
#include "quant/format/registry.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 48, kLength = 512, kRank = 4;

FakeQuantizer quantizer(const char* type, ScaleMode mode = ScaleMode::kFrozen) {
  torch::manual_seed(3);
  return {"blk.0.attn_q.weight",
          require_format(find_ggml_type(type)->type),
          mode,
          torch::randn({kRows, kLength}) * 0.05,
          {},
          EncodeMethod::kRtn};
}

/// What an optimizer would do.
void move(const MasterTraining& training, float size) {
  for (MasterTraining::Part& part : training.parameters())
    part.value.add_(torch::randn_like(part.value) * size);
}

torch::Tensor part_of(const MasterTraining& training, const std::string& suffix) {
  for (const MasterTraining::Part& part : training.state())
    if (part.suffix == suffix) return part.value;
  return {};
}

std::vector<int8_t> codes_of(const FakeQuantizer& quantizer) {
  const std::vector<std::byte> blocks = quantizer.blocks();
  std::vector<int8_t> codes(quantizer.weights().numel());
  quantizer.format().codes_of(blocks.data(), codes.data(),
                              quantizer.weights().numel() / quantizer.format().block_size);
  return codes;
}

std::string error_of(const char* way, int64_t rank) {
  const FakeQuantizer any = quantizer("Q4_0");
  try {
    make_master_training(way, any, rank);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), 2);
    return error.what();
  }
  return "";
}

TEST(MasterTraining, FullMovesTheMastersThemselves) {
  FakeQuantizer any = quantizer("Q4_0");
  const auto training = make_master_training("full", any, kRank);
  ASSERT_EQ(training->parameters().size(), 1u);
  EXPECT_TRUE(training->parameters()[0].value.is_same(any.weights()));
  const torch::Tensor gradient = torch::randn({kRows, kLength});
  EXPECT_TRUE(training->gradients(gradient)[0].is_same(gradient));
}

TEST(LowRank, StartsAtTheWeightsAndAddsItsProduct) {
  FakeQuantizer any = quantizer("Q4_0");
  const torch::Tensor start = any.weights().clone();
  const auto training = make_master_training("lora", any, kRank);
  training->apply(any.weights());
  EXPECT_TRUE(at::equal(any.weights(), start)) << "B is zero";
  for (int step = 0; step < 20; ++step) {
    move(*training, 0.01f);
    training->apply(any.weights());
  }
  const torch::Tensor a = part_of(*training, ":low_rank_a"), b = part_of(*training, ":low_rank_b");
  EXPECT_EQ(a.sizes(), (std::vector<int64_t>{kRank, kLength}));
  EXPECT_EQ(b.sizes(), (std::vector<int64_t>{kRows, kRank}));
  // Twenty sums of numbers of about 0.1: float32 rounds each by 1e-8.
  EXPECT_LT((any.weights() - (start + b.mm(a))).abs().max().item<float>(), 1e-6);
  EXPECT_GT((any.weights() - start).abs().max().item<float>(), 1e-2);
}

TEST(LowRank, GradientsAreAutograds) {
  FakeQuantizer any = quantizer("Q4_0");
  const auto training = make_master_training("lora", any, kRank);
  move(*training, 0.02f);
  const torch::Tensor a = part_of(*training, ":low_rank_a").clone().set_requires_grad(true),
                      b = part_of(*training, ":low_rank_b").clone().set_requires_grad(true);
  const torch::Tensor gradient = torch::randn({kRows, kLength});
  (b.mm(a) * gradient).sum().backward();
  const std::vector<torch::Tensor> own = training->gradients(gradient);
  ASSERT_EQ(own.size(), 2u);
  // Another order of the same sums.
  EXPECT_TRUE(at::allclose(own[0], a.grad(), 1e-5, 1e-5));
  EXPECT_TRUE(at::allclose(own[1], b.grad(), 1e-5, 1e-5));
}

// A stack: each expert by factors of its own.
TEST(LowRank, OfAStackIsThatOfEachMatrix) {
  torch::manual_seed(4);
  FakeQuantizer stack("blk.0.ffn_up_exps.weight", require_format(GgmlType::kQ4_0),
                      ScaleMode::kFrozen, torch::randn({3, kRows, kLength}) * 0.05, {},
                      EncodeMethod::kRtn);
  const torch::Tensor start = stack.weights().clone();
  const auto training = make_master_training("lora", stack, kRank);
  move(*training, 0.02f);
  training->apply(stack.weights());
  const torch::Tensor a = part_of(*training, ":low_rank_a"), b = part_of(*training, ":low_rank_b");
  const torch::Tensor gradient = torch::randn(start.sizes());
  const std::vector<torch::Tensor> own = training->gradients(gradient);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(at::allclose(stack.weights()[i], start[i] + b[i].mm(a[i]), 0, 1e-6));
    EXPECT_TRUE(at::allclose(own[0][i], b[i].t().mm(gradient[i]), 1e-5, 1e-5));
    EXPECT_TRUE(at::allclose(own[1][i], gradient[i].mm(a[i].t()), 1e-5, 1e-5));
  }
  EXPECT_GT((stack.weights() - start).abs().max().item<float>(), 1e-3);
}

TEST(LowRank, RestoredFactorsAreNotAddedTwice) {
  FakeQuantizer any = quantizer("Q4_0");
  const auto training = make_master_training("lora", any, kRank);
  move(*training, 0.01f);
  training->restored();
  const torch::Tensor before = any.weights().clone();
  training->apply(any.weights());
  EXPECT_TRUE(at::equal(any.weights(), before));
}

TEST(LowRank, EachTensorStartsWithFactorsOfItsOwn) {
  const FakeQuantizer one = quantizer("Q4_0");
  const FakeQuantizer two("blk.1.attn_q.weight", one.format(), ScaleMode::kFrozen,
                          one.weights().clone(), {}, EncodeMethod::kRtn);
  const auto a = make_master_training("lora", one, kRank),
             b = make_master_training("lora", two, kRank),
             again = make_master_training("lora", one, kRank);
  EXPECT_FALSE(at::equal(part_of(*a, ":low_rank_a"), part_of(*b, ":low_rank_a")));
  EXPECT_TRUE(at::equal(part_of(*a, ":low_rank_a"), part_of(*again, ":low_rank_a")));
}

// However far the optimizer pushes, a code is the one below or above the weight it started from.
TEST(WithinRounding, NoCodeGoesFurtherThanRoundingWould) {
  for (const char* type : {"Q4_0", "Q4_1", "Q2_0", "Q4_K", "Q3_K", "Q1_0"}) {
    FakeQuantizer any = quantizer(type);
    const std::vector<int8_t> before = codes_of(any);
    const torch::Tensor start = any.weights().clone();
    const auto training = make_master_training("rounding", any, kRank);
    training->apply(any.weights());
    EXPECT_TRUE(at::equal(any.weights(), start)) << type;
    move(*training, 1.0f);
    training->apply(any.weights());
    const std::vector<int8_t> after = codes_of(any);
    int64_t moved = 0, largest = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      const int64_t distance = std::abs(after[i] - before[i]);
      moved += distance > 0;
      largest = std::max(largest, distance);
    }
    EXPECT_GT(moved, kRows * kLength / 10) << type;
    // Q1_0's two levels are -1 and 1.
    EXPECT_EQ(largest, std::string(type) == "Q1_0" ? 2 : 1) << type;
  }
}

TEST(MasterTraining, ErrorsNameWhatWasWanted) {
  EXPECT_NE(error_of("lorra", kRank).find("did you mean 'lora'"), std::string::npos);
  const std::string error = error_of("lora", 49);
  EXPECT_NE(error.find("blk.0.attn_q.weight"), std::string::npos) << error;
  EXPECT_NE(error.find("quant.lora_rank"), std::string::npos) << error;
}

}  // namespace
}  // namespace nibble
