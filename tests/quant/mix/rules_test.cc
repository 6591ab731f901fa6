#include "quant/mix/rules.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace nibble {
namespace {

TEST(Rules, RolesComeFromNames) {
  EXPECT_EQ(role_of("output.weight"), TensorRole::kOutput);
  EXPECT_EQ(role_of("output_norm.weight"), TensorRole::kOther);
  EXPECT_EQ(role_of("token_embd.weight"), TensorRole::kTokenEmbedding);
  EXPECT_EQ(role_of("per_layer_token_embd.weight"), TensorRole::kTokenEmbedding);
  EXPECT_EQ(role_of("token_embd_norm.weight"), TensorRole::kOther);
  EXPECT_EQ(role_of("blk.3.attn_v.weight"), TensorRole::kAttentionV);
  EXPECT_EQ(role_of("blk.3.attn_qkv.weight"), TensorRole::kAttentionV);
  EXPECT_EQ(role_of("blk.3.attn_kv_b.weight"), TensorRole::kAttentionV);
  EXPECT_EQ(role_of("blk.3.attn_k.weight"), TensorRole::kAttentionK);
  EXPECT_EQ(role_of("blk.3.attn_q.weight"), TensorRole::kAttentionQ);
  EXPECT_EQ(role_of("blk.3.attn_output.weight"), TensorRole::kAttentionOutput);
  EXPECT_EQ(role_of("blk.3.ffn_down_exps.weight"), TensorRole::kFfnDown);
  EXPECT_EQ(role_of("blk.3.ffn_gate.weight"), TensorRole::kFfnGate);
  EXPECT_EQ(role_of("blk.3.ffn_gate_up_exps.weight"), TensorRole::kFfnGate);
  EXPECT_EQ(role_of("blk.3.ffn_up.weight"), TensorRole::kFfnUp);
  EXPECT_EQ(role_of("blk.3.attn_q_a.weight"), TensorRole::kOther);
}

TEST(Rules, WhatIsKept) {
  const std::vector<int64_t> matrix = {64, 64}, vector = {64}, column = {64, 1};
  EXPECT_EQ(kept_because("blk.0.attn_q.weight", matrix, "llama"), "");
  EXPECT_EQ(kept_because("blk.0.ffn_down_exps.weight", {64, 64, 8}, "llama"), "");
  EXPECT_EQ(kept_because("blk.0.attn_q.weight", vector, "llama"), "fewer than 2 dimensions");
  EXPECT_EQ(kept_because("blk.0.attn_q.weight", column, "llama"), "fewer than 2 dimensions");
  EXPECT_EQ(kept_because("blk.0.attn_q.bias", matrix, "llama"), "not a weight");
  EXPECT_EQ(kept_because("blk.0.attn_norm.weight", matrix, "llama"), "norm");
  EXPECT_EQ(kept_because("blk.0.ffn_gate_inp.weight", matrix, "llama"), "router");
  EXPECT_EQ(kept_because("position_embd.weight", matrix, "gpt2"), "position embedding");
  EXPECT_EQ(kept_because("token_types.weight", matrix, "bert"), "token types");
  EXPECT_EQ(kept_because("blk.0.ssm_conv1d.weight", matrix, "mamba"), "small convolution");
  EXPECT_EQ(kept_because("v.boi", matrix, "llama"), "");
  EXPECT_EQ(kept_because("v.boil", matrix, "llama"), "not a weight");
  EXPECT_EQ(kept_because("blk.0.attn_k_b.weight", matrix, "deepseek2"), "");
  EXPECT_EQ(kept_because("blk.0.attn_k_b.weight", matrix, "glm5-next"), "small glm5-next weight");
}

TEST(Rules, RowsThatBlocksDoNotDivide) {
  EXPECT_EQ(type_that_fits(GgmlType::kQ6_K, 512), GgmlType::kQ6_K);
  EXPECT_EQ(type_that_fits(GgmlType::kQ6_K, 576), GgmlType::kQ8_0);
  EXPECT_EQ(type_that_fits(GgmlType::kQ4_K, 576), GgmlType::kQ5_0);
  EXPECT_EQ(type_that_fits(GgmlType::kQ2_0, 96), GgmlType::kQ4_0);
  EXPECT_EQ(type_that_fits(GgmlType::kIQ4_XS, 32), GgmlType::kIQ4_NL);
  EXPECT_EQ(type_that_fits(GgmlType::kQ6_K, 172), GgmlType::kF16);
  EXPECT_EQ(type_that_fits(GgmlType::kQ4_0, 172), GgmlType::kF16);
  EXPECT_EQ(type_that_fits(GgmlType::kF32, 7), GgmlType::kF32);
  EXPECT_THROW(type_that_fits(GgmlType::kQ8_K, 32), Error);
  EXPECT_THROW(type_that_fits(GgmlType::kQ1_0, 576), Error);
}

TEST(Rules, LayersOfNames) {
  EXPECT_EQ(layer_of("blk.12.ffn_down.weight"), 12);
  EXPECT_EQ(layer_of("output.weight"), std::nullopt);
  EXPECT_EQ(layer_of("blk.x.weight"), std::nullopt);
  EXPECT_EQ(layer_of("blk.99999999999999999999.weight"), std::nullopt);
  EXPECT_EQ(layer_of("blk.7"), std::nullopt);
}

TEST(Rules, LayersBehindPrunedOnesMoveUp) {
  EXPECT_EQ(name_after_pruning("blk.0.attn_q.weight", {1, 3}), "blk.0.attn_q.weight");
  EXPECT_EQ(name_after_pruning("blk.2.attn_q.weight", {1, 3}), "blk.1.attn_q.weight");
  EXPECT_EQ(name_after_pruning("blk.12.attn_q.weight", {1, 3}), "blk.10.attn_q.weight");
  EXPECT_EQ(name_after_pruning("output.weight", {1, 3}), "output.weight");
  EXPECT_TRUE(is_in_layers("blk.3.attn_q.weight", {1, 3}));
  EXPECT_FALSE(is_in_layers("blk.33.attn_q.weight", {1, 3}));
  EXPECT_FALSE(is_in_layers("output.weight", {1, 3}));
  EXPECT_TRUE(is_in_layers("enc.blk.3.attn_q.weight", {1, 3}));
  EXPECT_FALSE(is_in_layers("enc.blk.x3.attn_q.weight", {1, 3}));
  EXPECT_EQ(layer_of("enc.blk.3.attn_q.weight"), std::nullopt);
  EXPECT_EQ(name_after_pruning("dec.blk.12.ffn_up.weight", {1, 3}), "dec.blk.10.ffn_up.weight");
}

}  // namespace
}  // namespace nibble
