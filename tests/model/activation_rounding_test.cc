// What enters a matmul, rounded as llama.cpp's backends round it. That llama.cpp itself then gives
// the same figures: tests/interop/test_activations.py.
#include "model/activation_rounding.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "quant/format/registry.h"
#include "tests/io/temporary_folder.h"
#include "tests/model/tiny_llama.h"

namespace nibble {
namespace {

torch::Tensor activations() {
  torch::manual_seed(5);
  torch::Tensor x = torch::randn({7, 512});
  x[3].fill_(0);    // a block without a scale
  x[4][17] = -40;   // one that a single value rules
  x[5].mul_(1e-9);  // where a float16 scale is subnormal or 0
  return x;
}

TEST(ActivationRoundingTest, BlocksOf32AreThoseOfQ8_0) {
  const torch::Tensor x = activations();
  const Format& format = require_format(GgmlType::kQ8_0);
  std::vector<std::byte> blocks(x.numel() / format.block_size * format.block_bytes);
  torch::Tensor decoded = torch::empty_like(x);
  format.encode(x.data_ptr<float>(), nullptr, blocks.data(), x.numel(), EncodeMethod::kGgml);
  format.decode(blocks.data(), decoded.data_ptr<float>(), x.numel() / format.block_size);
  const torch::Tensor rounded = round_activations(x, ActivationRounding::kQ8_0);
  // x + (decoded - x) is the decoded value but for a rounding of float32.
  EXPECT_TRUE(at::allclose(rounded, decoded, /*rtol=*/1e-6, /*atol=*/1e-12));
  EXPECT_GT((rounded - x).abs().max().item<float>(), 1e-3f);
}

TEST(ActivationRoundingTest, BlocksOf256KeepTheirExtremeAndErrLessThanHalfAStep) {
  const torch::Tensor x = activations();
  const torch::Tensor rounded = round_activations(x, ActivationRounding::kQ8_K).view({-1, 256});
  const torch::Tensor blocks = x.view({-1, 256});
  const torch::Tensor largest = blocks.abs().amax(1, true);
  EXPECT_TRUE(((rounded - blocks).abs() <= largest * (0.5001 / 127)).all().item<bool>());
  EXPECT_TRUE(at::allclose(rounded.abs().amax(1, true), largest, 1e-6, 0));
  EXPECT_TRUE(((rounded - blocks).abs().amax(1) > 0)[0].item<bool>());
}

TEST(ActivationRoundingTest, GradientsPassStraightThrough) {
  torch::Tensor x = activations().requires_grad_(true);
  round_activations(x, ActivationRounding::kQ8_K).mul(3).sum().backward();
  EXPECT_TRUE((x.grad() == 3).all().item<bool>());
}

TEST(ActivationRoundingTest, TheWeightsTypeDecides) {
  const auto cpu = [](GgmlType type) {
    return activation_rounding(type, ActivationBackend::kLlamaCpu);
  };
  const auto cuda = [](GgmlType type) {
    return activation_rounding(type, ActivationBackend::kLlamaCuda);
  };
  EXPECT_EQ(cpu(GgmlType::kF32), ActivationRounding::kNone);
  EXPECT_EQ(cpu(GgmlType::kF16), ActivationRounding::kFloat16);
  EXPECT_EQ(cpu(GgmlType::kBF16), ActivationRounding::kBfloat16);
  for (const GgmlType type :
       {GgmlType::kQ4_0, GgmlType::kQ4_1, GgmlType::kQ5_0, GgmlType::kQ5_1, GgmlType::kQ8_0,
        GgmlType::kIQ4_NL, GgmlType::kQ1_0, GgmlType::kQ2_0, GgmlType::kMXFP4, GgmlType::kNVFP4})
    EXPECT_EQ(cpu(type), ActivationRounding::kQ8_0) << type_name(type);
  for (const GgmlType type : {GgmlType::kQ2_K, GgmlType::kQ3_K, GgmlType::kQ4_K, GgmlType::kQ5_K,
                              GgmlType::kQ6_K, GgmlType::kIQ4_XS, GgmlType::kTQ1_0,
                              GgmlType::kTQ2_0, GgmlType::kIQ2_XXS, GgmlType::kIQ1_M}) {
    EXPECT_EQ(cpu(type), ActivationRounding::kQ8_K) << type_name(type);
    EXPECT_EQ(cuda(type), ActivationRounding::kQ8_0) << type_name(type);
  }
  EXPECT_EQ(activation_rounding(GgmlType::kQ4_0, ActivationBackend::kNone),
            ActivationRounding::kNone);
  EXPECT_THROW(parse_activation_backend("llama_gpu"), Error);
}

/// A model of two types in one matmul sees what it would if each weight were asked alone.
TEST(ActivationRoundingTest, AModelRoundsForEachWeight) {
  const TemporaryFolder folder;
  TinyLlama tiny;
  tiny.width = 256;
  tiny.feed_forward = 256;
  tiny.write(folder.file("tiny.gguf"));
  const auto model = load_model(GgufFile::open(folder.file("tiny.gguf")));
  const Batch batch{torch::arange(16).view({1, 16}), {}};
  const torch::NoGradGuard no_grad;
  const torch::Tensor plain = model->logits(batch);
  const auto logits_with = [&](GgmlType type, GgmlType of_value) {
    set_activation_rounding(*model, ActivationBackend::kLlamaCpu, [&](const Weight& weight) {
      return weight.name.find("attn_v") == std::string::npos ? type : of_value;
    });
    return model->logits(batch);
  };
  const torch::Tensor float16 = logits_with(GgmlType::kF16, GgmlType::kF16);
  const torch::Tensor mixed = logits_with(GgmlType::kF16, GgmlType::kQ4_0);
  const torch::Tensor q8_0 = logits_with(GgmlType::kQ4_0, GgmlType::kQ4_0);
  const auto apart = [](const torch::Tensor& a, const torch::Tensor& b) {
    return (a - b).square().mean().item<float>();
  };
  EXPECT_GT(apart(float16, plain), 0);
  EXPECT_GT(apart(mixed, plain), 10 * apart(float16, plain));
  EXPECT_GT(apart(q8_0, plain), 2 * apart(mixed, plain));
  set_activation_rounding(*model, ActivationBackend::kNone,
                          [](const Weight&) { return GgmlType::kQ4_0; });
  EXPECT_TRUE(at::equal(model->logits(batch), plain));
}

TEST(ActivationRoundingTest, WantsFloat32) {
  const TemporaryFolder folder;
  TinyLlama().write(folder.file("tiny.gguf"));
  const auto model = load_model(GgufFile::open(folder.file("tiny.gguf")));
  model->set_compute_dtype(torch::kBFloat16);
  EXPECT_THROW(set_activation_rounding(*model, ActivationBackend::kLlamaCpu,
                                       [](const Weight&) { return GgmlType::kQ4_0; }),
               Error);
}

}  // namespace
}  // namespace nibble
