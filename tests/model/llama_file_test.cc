// What is wrong with a model's file is said by name.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/model/llama_test.h"

namespace nibble {
namespace {

class LlamaFileTest : public LlamaTest {
 protected:
  void expect_complaint(const TinyLlama& tiny, const std::vector<std::string>& parts) {
    const std::string text = complaint(tiny);
    EXPECT_EQ(text.find(path_), 0u) << text;
    for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << text;
  }
};

TEST_F(LlamaFileTest, MistakesInTheFileAreNamed) {
  TinyLlama tiny;
  tiny.missing = {"blk.1.ffn_up.weight"};
  expect_complaint(tiny, {"blk.1.ffn_up.weight", "[32 x 40]", "missing"});

  tiny = {};
  tiny.missing = {"blk.0.attn_k.weight"};
  tiny.more_tensors = {{"blk.0.attn_k.weight", {32, 15}, GgmlType::kF32}};
  expect_complaint(tiny, {"blk.0.attn_k.weight", "[32 x 15]", "[32 x 16]"});

  tiny = {};
  tiny.more_tensors = {{"blk.0.ffn_gate_inp.weight", {32, 4}, GgmlType::kF32}};
  expect_complaint(tiny, {"blk.0.ffn_gate_inp.weight", "no such tensor"});

  tiny = {};
  tiny.extra.set("general.architecture", std::string("mamba"));
  expect_complaint(tiny, {"unknown architecture 'mamba'", "llama"});

  tiny = {};
  tiny.architecture = "qwen3";
  tiny.missing = {"blk.1.attn_k_norm.weight"};
  expect_complaint(tiny, {"blk.1.attn_k_norm.weight", "[8]", "missing"});

  tiny = {};
  tiny.architecture = "qwen2";
  tiny.more_tensors = {{"blk.0.attn_output.bias", {32}, GgmlType::kF32}};
  expect_complaint(tiny, {"blk.0.attn_output.bias", "no such tensor"});

  tiny = {};
  tiny.take_architecture("gemma3");
  tiny.extra.set("gemma3.attention.sliding_window_pattern", uint32_t{4});
  expect_complaint(tiny, {"gemma3.attention.sliding_window_pattern", "each layer number 6"});

  tiny = {};
  tiny.take_architecture("gemma2");
  tiny.extra.set("gemma2.final_logit_softcapping", 0.0f);
  expect_complaint(tiny, {"gemma2.final_logit_softcapping", "must be positive"});

  tiny = {};
  tiny.take_architecture("gemma2");
  tiny.tied = false;
  expect_complaint(tiny, {"output.weight", "no such tensor"});

  tiny = {};
  tiny.take_architecture("qwen35");
  tiny.missing = {"blk.2.ssm_conv1d.weight"};
  expect_complaint(tiny, {"blk.2.ssm_conv1d.weight", "[4 x 48]", "missing"});

  // Of five layers one that predicts further tokens has attention and four tensors more.
  tiny = {};
  tiny.take_architecture("qwen35");
  tiny.extra.set("qwen35.nextn_predict_layers", uint32_t{1});
  expect_complaint(tiny, {"blk.4.attn_q.weight", "missing"});
  tiny.extra.set("qwen35.nextn_predict_layers", uint32_t{5});
  expect_complaint(tiny, {"qwen35.nextn_predict_layers", "5, of 5 layers"});
  tiny.extra.set("qwen35.nextn_predict_layers", int32_t{-1});
  expect_complaint(tiny, {"qwen35.nextn_predict_layers", "-1, of 5 layers"});

  tiny = {};
  tiny.extra.set("llama.expert_count", uint32_t{8});
  expect_complaint(tiny, {"llama.expert_used_count"});

  tiny = {};
  tiny.architecture = "qwen2";
  tiny.extra.set("qwen2.expert_count", uint32_t{8});
  expect_complaint(tiny, {"qwen2.expert_count", "8", "no mixture of experts of qwen2"});

  tiny = {};
  tiny.take_architecture("qwen3moe");
  tiny.erased = {"qwen3moe.expert_count"};
  expect_complaint(tiny, {"qwen3moe.expert_count", "only mixtures of experts"});

  tiny = {};
  tiny.take_architecture("mixtral");
  tiny.extra.set("llama.expert_used_count", uint32_t{7});
  expect_complaint(tiny, {"llama.expert_used_count", "7", "of 6 experts"});

  tiny = {};
  tiny.take_architecture("mixtral");
  tiny.extra.set("llama.expert_group_count", uint32_t{2});
  expect_complaint(tiny, {"llama.expert_group_count", "no groups"});

  tiny = {};
  tiny.take_architecture("qwen3moe");
  tiny.missing = {"blk.1.ffn_up_exps.weight"};
  tiny.more_tensors = {{"blk.1.ffn_up_exps.weight", {32, 24, 5}, GgmlType::kF32}};
  expect_complaint(tiny, {"blk.1.ffn_up_exps.weight", "[32 x 24 x 5]", "[32 x 24 x 6]"});
}

TEST_F(LlamaFileTest, MissingAndImpossibleKeysAreNamed) {
  for (const std::string key :
       {"general.architecture", "llama.block_count", "llama.embedding_length",
        "llama.feed_forward_length", "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon", "llama.context_length"}) {
    TinyLlama tiny;
    tiny.erased = {key};
    expect_complaint(tiny, {key});
  }
  for (const std::string key : {"llama.block_count", "llama.attention.head_count"}) {
    TinyLlama tiny;
    tiny.extra.set(key, uint32_t{0});
    expect_complaint(tiny, {key, "positive"});
  }
  TinyLlama tiny;
  tiny.extra.set("llama.attention.head_count_kv", uint32_t{3});
  expect_complaint(tiny, {"llama.attention.head_count_kv", "divide"});
  tiny = {};
  tiny.extra.set("llama.rope.dimension_count", uint32_t{4});
  expect_complaint(tiny, {"llama.rope.dimension_count"});
}

}  // namespace
}  // namespace nibble
