#include "model/hf/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

/// Llama 3.2 1B's, as transformers 4 writes it.
Json llama3() {
  return Json::parse(R"({"architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
    "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
    "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": true, "vocab_size": 128256})");
}

std::string refusal(const Json& config) {
  try {
    read_hf_config(config);
    return "was taken";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(HfConfig, NormsDivideByWhatIsPositive) {
  Json config = llama3();
  for (const double epsilon : {0.0, -1e-5}) {
    config["rms_norm_eps"] = epsilon;
    EXPECT_NE(refusal(config).find("'rms_norm_eps' must be positive"), std::string::npos);
  }
}

TEST(HfConfig, BothVersionsOfTransformersSayTheSame) {
  Json newer = llama3();
  newer["rope_parameters"] = newer["rope_scaling"];
  newer["rope_parameters"]["rope_theta"] = newer["rope_theta"];
  newer.erase("rope_scaling");
  newer.erase("rope_theta");
  const HfConfig a = read_hf_config(llama3()), b = read_hf_config(newer);
  EXPECT_EQ(hf_model_metadata(a, 0).pairs(), hf_model_metadata(b, 0).pairs());
  EXPECT_EQ(llama3_rope_divisors(a.rope), llama3_rope_divisors(b.rope));
  EXPECT_EQ(a.sizes.head_size, 64);
  EXPECT_TRUE(a.tied);
}

// Wavelengths below 8192 / 4 stay, above 8192 / 1 are stretched by 32, between by a ramp.
TEST(HfConfig, Llama3StretchesLongWavelengths) {
  const std::vector<float> divisors = llama3_rope_divisors(read_hf_config(llama3()).rope);
  ASSERT_EQ(divisors.size(), 32u);
  EXPECT_EQ(divisors.front(), 1.0f);
  EXPECT_EQ(divisors.back(), 32.0f);
  for (size_t i = 1; i < divisors.size(); ++i) EXPECT_GE(divisors[i], divisors[i - 1]);
  // Pair 16: wavelength 2 pi 500000^(1/2) = 4442.9; smooth = (8192 / 4442.9 - 1) / 3 = 0.28128.
  EXPECT_NEAR(divisors[16], 1 / ((1 - 0.28128) / 32 + 0.28128), 1e-3);
}

TEST(HfConfig, ScalingsThatGgufKnows) {
  Json config = llama3();
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  GgufMetadata metadata = hf_model_metadata(read_hf_config(config), 1);
  EXPECT_EQ(metadata.get_string("llama.rope.scaling.type"), "linear");
  EXPECT_EQ(metadata.get_float("llama.rope.scaling.factor"), 4.0);
  config["rope_scaling"] = {
      {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}};
  metadata = hf_model_metadata(read_hf_config(config), 1);
  EXPECT_EQ(metadata.get_string("llama.rope.scaling.type"), "yarn");
  EXPECT_EQ(metadata.get_int("llama.rope.scaling.original_context_length"), 32768);
  config["rope_scaling"] = nullptr;
  metadata = hf_model_metadata(read_hf_config(config), 1);
  EXPECT_FALSE(metadata.contains("llama.rope.scaling.type"));
  EXPECT_EQ(metadata.get_float("llama.rope.freq_base"), 500000.0);
}

TEST(HfConfig, Qwen2SaysNoHeadSizeAndQwen3Must) {
  Json config = llama3();
  config["rope_scaling"] = nullptr;
  config["architectures"] = {"Qwen2ForCausalLM"};
  EXPECT_FALSE(hf_model_metadata(read_hf_config(config), 0).contains("qwen2.attention.key_length"));
  config["architectures"] = {"Qwen3ForCausalLM"};
  EXPECT_NE(refusal(config).find("'head_dim'"), std::string::npos);
  config["head_dim"] = 128;
  const GgufMetadata metadata = hf_model_metadata(read_hf_config(config), 0);
  EXPECT_EQ(metadata.get_int("qwen3.attention.key_length"), 128);
  EXPECT_FALSE(metadata.contains("qwen3.vocab_size"));
}

/// Phi-4-mini's, narrower, as Microsoft writes it.
Json phi3() {
  return Json::parse(R"({"architectures": ["Phi3ForCausalLM"], "hidden_act": "silu",
    "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 131072,
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75, "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1, 1.25, 2, 4, 8, 16], "short_factor": [1, 1, 1, 1, 1, 2],
    "type": "longrope"}, "rope_theta": 10000.0, "sliding_window": 262144, "vocab_size": 200064})");
}

TEST(HfConfig, Phi3SaysItsLongRope) {
  const HfConfig config = read_hf_config(phi3());
  const GgufMetadata metadata = hf_model_metadata(config, 0);
  EXPECT_EQ(metadata.get_int("phi3.rope.dimension_count"), 12);
  EXPECT_EQ(metadata.get_int("phi3.rope.scaling.original_context_length"), 4096);
  // sqrt(1 + ln 32 / ln 4096) = sqrt(1 + 5/12)
  EXPECT_FLOAT_EQ(metadata.get_float("phi3.rope.scaling.attn_factor"), std::sqrt(17.0 / 12));
  const std::vector<RopeTensor> tensors = hf_rope_tensors(config.rope);
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "rope_factors_long.weight");
  EXPECT_EQ(tensors[0].divisors[1], 1.25f);
  EXPECT_EQ(tensors[1].divisors[5], 2.0f);
}

TEST(HfConfig, Phi3RefusesWhatAGgufFileWouldNotSay) {
  const auto with = [](const char* key, const Json& value) {
    Json config = phi3();
    config["rope_scaling"][key] = value;
    return refusal(config);
  };
  EXPECT_NE(with("type", "yarn").find("nibble has default and longrope for phi3"),
            std::string::npos);
  EXPECT_NE(with("long_mscale", 1.1).find("'long_mscale'"), std::string::npos);
  EXPECT_NE(with("factor", 4.0).find("'factor' is not"), std::string::npos);
  EXPECT_NE(with("long_factor", {1, 2}).find("wants 6 numbers, found 2"), std::string::npos);
  EXPECT_NE(with("short_factor", {1, 1, 1, 1, 1, 0}).find("no positive"), std::string::npos);
  Json config = phi3();
  config["partial_rotary_factor"] = 0.7;
  EXPECT_NE(refusal(config).find("no even number"), std::string::npos);
  config = phi3();
  config["head_dim"] = 32;
  config["rope_scaling"] = nullptr;
  EXPECT_NE(refusal(config).find("'head_dim'"), std::string::npos);
}

/// gemma-2-27b's, as Google writes it.
Json gemma2() {
  return Json::parse(R"({"architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "head_dim": 128, "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 4608, "intermediate_size": 36864, "max_position_embeddings": 8192,
    "num_attention_heads": 32, "num_hidden_layers": 46, "num_key_value_heads": 16,
    "query_pre_attn_scalar": 144, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    "sliding_window": 4096, "vocab_size": 256000})");
}

TEST(HfConfig, Gemma2SaysItsCaps) {
  const GgufMetadata metadata = hf_model_metadata(read_hf_config(gemma2()), 0);
  EXPECT_EQ(metadata.get_float("gemma2.attn_logit_softcapping"), 50);
  EXPECT_EQ(metadata.get_float("gemma2.final_logit_softcapping"), 30);
  EXPECT_EQ(metadata.get_int("gemma2.attention.sliding_window"), 4096);
  EXPECT_FALSE(metadata.contains("gemma2.rope.freq_base"));
}

TEST(HfConfig, Gemma2RefusesWhatAGgufFileWouldNotSay) {
  const auto with = [](const char* key, const Json& value) {
    Json config = gemma2();
    config[key] = value;
    return refusal(config);
  };
  EXPECT_NE(with("num_hidden_layers", 42).find("for 42 layers, llama.cpp and nibble take 128"),
            std::string::npos);
  EXPECT_NE(with("final_logit_softcapping", nullptr).find("'final_logit_softcapping' must be"),
            std::string::npos);
  EXPECT_NE(with("rope_theta", 20000.0).find("rope base of 10000"), std::string::npos);
  EXPECT_NE(with("tie_word_embeddings", false).find("no output matrix"), std::string::npos);
  EXPECT_NE(with("sliding_window_pattern", 6).find("each layer number 2"), std::string::npos);
}

// As in the folder of gemma-3-4b: only what is not transformers' default is said.
TEST(HfConfig, TheTextPartOfAModelThatSeesToo) {
  const Json config = Json::parse(R"({"architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3", "num_attention_heads": 5, "text_config": {"hidden_size": 2560,
    "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
    "vision_config": {"hidden_size": 1152}})");
  const HfConfig found = read_hf_config(config);
  EXPECT_EQ(found.architecture->name, "gemma3");
  EXPECT_EQ(found.sizes.width, 2560);
  EXPECT_EQ(found.sizes.num_heads, 8);
  EXPECT_EQ(found.sizes.num_kv_heads, 4);
  EXPECT_EQ(found.sizes.head_size, 256);
  EXPECT_EQ(found.sizes.vocab_size, 262208);
  EXPECT_EQ(found.context_length, 131072);
  EXPECT_EQ(found.rope.base, 1e6);
  EXPECT_EQ(found.rope.window_base, 1e4);
  EXPECT_EQ(found.window, 1024);
  EXPECT_TRUE(found.tied);
}

TEST(HfConfig, Gemma3ScalesLayersWithoutAWindowOnly) {
  Json config = Json::parse(R"({"architectures": ["Gemma3ForCausalLM"], "hidden_size": 640,
    "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4,
    "num_key_value_heads": 1, "rope_parameters": {
      "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
      "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}})");
  EXPECT_EQ(read_hf_config(config).rope.window_base, 1e4);
  config["rope_parameters"]["sliding_attention"]["rope_type"] = "linear";
  EXPECT_NE(refusal(config).find("rope_type 'linear': a gemma3 file"), std::string::npos)
      << refusal(config);
}

TEST(HfConfig, LayersThatNoFileCanHave) {
  Json config = llama3();
  config["num_hidden_layers"] = 513;
  EXPECT_NE(refusal(config).find("llama.cpp takes 512 at most, is 513"), std::string::npos)
      << refusal(config);
}

// Where config.json leaves them out.
TEST(HfConfig, MixtralsAndPhi3sDefaults) {
  Json config = llama3();
  config.update({{"architectures", {"MixtralForCausalLM"}},
                 {"num_local_experts", 8},
                 {"num_experts_per_tok", 2}});
  for (const char* key : {"rope_theta", "rope_scaling", "rms_norm_eps"}) config.erase(key);
  HfConfig found = read_hf_config(config);
  EXPECT_EQ(found.rope.base, 1e6);
  EXPECT_EQ(found.norm_epsilon, 1e-5);
  config["architectures"] = {"Phi3ForCausalLM"};
  found = read_hf_config(config);
  EXPECT_EQ(found.rope.base, 1e4);
  EXPECT_EQ(found.norm_epsilon, 1e-5);
}

TEST(HfConfig, TheTensorsOfTheTextPart) {
  EXPECT_EQ(text_tensor_name("model.norm.weight"), "model.norm.weight");
  EXPECT_EQ(text_tensor_name("language_model.model.norm.weight"), "model.norm.weight");
  EXPECT_EQ(text_tensor_name("language_model.lm_head.weight"), "lm_head.weight");
  EXPECT_EQ(text_tensor_name("model.language_model.norm.weight"), "model.norm.weight");
  EXPECT_EQ(text_tensor_name("vision_tower.vision_model.post_layernorm.weight"), "");
  EXPECT_EQ(text_tensor_name("model.multi_modal_projector.mm_soft_emb_norm.weight"), "");
}

TEST(HfConfig, Smollm3TurnsNoHeadsInEachFourthLayer) {
  Json config = llama3();
  config["architectures"] = {"SmolLM3ForCausalLM"};
  EXPECT_NE(refusal(config).find("rope type 'llama3': a smollm3"), std::string::npos);
  config["rope_scaling"] = nullptr;
  EXPECT_EQ(refusal(config), "was taken");
  config["no_rope_layer_interval"] = 2;
  EXPECT_NE(refusal(config).find("'no_rope_layer_interval': 2; nibble has 4"), std::string::npos);
  config["no_rope_layers"] = Json::array();
  EXPECT_NE(refusal(config).find("'no_rope_layers': wants 16"), std::string::npos);
  for (int i = 0; i < 16; ++i) config["no_rope_layers"].push_back(i % 4 < 3 ? 1 : 0);
  EXPECT_EQ(refusal(config), "was taken");
  config["no_rope_layers"][7] = 1;
  EXPECT_NE(refusal(config).find("layer 7"), std::string::npos);
}

struct Change {
  const char *key, *value, *message;
};
constexpr Change kChanges[] = {
    {"architectures", R"(["GemmaForCausalLM"])", "'GemmaForCausalLM' cannot be converted yet"},
    {"architectures", "[]", "'architectures': names none"},
    {"hidden_size", R"("2048")", "key 'hidden_size': wants an integer, found string"},
    {"hidden_size", "null", "has no 'hidden_size'"},
    {"hidden_size", "-1", "must be positive"},
    {"hidden_size", "1e30", "wants an integer, found number"},
    {"vocab_size", "9223372036854775808", "does not fit 32 bits"},
    {"num_key_value_heads", "5", "must divide"},
    {"hidden_size", "2049", "must divide hidden_size"},
    {"head_dim", "63", "no pairs to turn"},
    {"hidden_act", R"("gelu")", "'gelu'; nibble has silu"},
    {"rope_scaling", R"({"rope_type": "longrope", "factor": 2})", "rope type 'longrope'"},
    {"rope_scaling", R"({"rope_type": "dynamic", "factor": 2})", "rope type 'dynamic'"},
    {"rope_scaling", R"({"rope_type": "linear"})", "positive 'factor'"},
    {"rope_scaling", R"({"rope_type": "llama3", "factor": 8})", "'low_freq_factor'"},
    {"rope_scaling", R"({"rope_type": "yarn", "factor": 8, "attention_factor": 2})",
     "'attention_factor' cannot be said"},
    {"rope_scaling", R"({"rope_type": "yarn", "factor": 8, "beta_fast": 16})", "beta_fast of 32"},
    {"rope_scaling", "3", "key 'rope_scaling': wants an object, found number"},
    {"rope_theta", "0", "'rope_theta' must be positive"},
    {"partial_rotary_factor", "0.5", "whole heads only"},
};

TEST(HfConfig, RefusesWhatAGgufFileWouldNotSay) {
  for (const Change& change : kChanges) {
    Json config = llama3();
    config[change.key] = Json::parse(change.value);
    EXPECT_NE(refusal(config).find(change.message), std::string::npos)
        << change.key << ": " << change.value << ": " << refusal(config);
  }
  EXPECT_EQ(refusal(llama3()), "was taken");
}

/// Qwen3-30B-A3B's.
Json qwen3_moe() {
  Json config = llama3();
  config["architectures"] = {"Qwen3MoeForCausalLM"};
  config["rope_scaling"] = nullptr;
  config.update({{"num_experts", 128},
                 {"num_experts_per_tok", 8},
                 {"moe_intermediate_size", 768},
                 {"norm_topk_prob", true},
                 {"decoder_sparse_step", 1},
                 {"mlp_only_layers", Json::array()}});
  return config;
}

TEST(HfConfig, RefusesMixturesThatAGgufFileWouldNotSay) {
  const Change changes[] = {
      {"num_experts", "100000", "100000 experts; llama.cpp takes up to 1024"},
      {"num_experts", "1", "a mixture of 1 experts"},
      {"num_experts_per_tok", "129", "129 of 128 experts"},
      {"norm_topk_prob", "false", "'norm_topk_prob' is not true"},
      {"norm_topk_prob", "null", "'norm_topk_prob' is not true"},
      {"moe_intermediate_size", "null", "has no 'moe_intermediate_size'"},
      {"decoder_sparse_step", "2", "'decoder_sparse_step': 2"},
      {"mlp_only_layers", "[3]", "experts in all layers"},
  };
  for (const Change& change : changes) {
    Json config = qwen3_moe();
    config[change.key] = Json::parse(change.value);
    EXPECT_NE(refusal(config).find(change.message), std::string::npos)
        << change.key << ": " << change.value << ": " << refusal(config);
  }
  const GgufMetadata metadata = hf_model_metadata(read_hf_config(qwen3_moe()), 1);
  EXPECT_EQ(metadata.get_int("qwen3moe.expert_count"), 128);
  EXPECT_EQ(metadata.get_int("qwen3moe.expert_used_count"), 8);
  EXPECT_EQ(metadata.get_int("qwen3moe.expert_feed_forward_length"), 768);
}

/// gpt-oss-20b's.
Json gpt_oss() {
  return Json::parse(R"({"architectures": ["GptOssForCausalLM"], "attention_bias": true,
    "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "max_position_embeddings": 131072, "num_attention_heads": 64, "num_experts_per_tok": 4,
    "num_hidden_layers": 4, "num_key_value_heads": 8, "num_local_experts": 32,
    "rms_norm_eps": 1e-05, "rope_theta": 150000, "sliding_window": 128, "swiglu_limit": 7.0,
    "tie_word_embeddings": false, "vocab_size": 201088, "rope_scaling": {"beta_fast": 32.0,
    "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
    "rope_type": "yarn", "truncate": false}})");
}

TEST(HfConfig, GptOssSaysItsWindowAndItsExperts) {
  const GgufMetadata metadata = hf_model_metadata(read_hf_config(gpt_oss()), 1);
  EXPECT_EQ(metadata.get_int("gpt-oss.attention.sliding_window"), 128);
  EXPECT_EQ(metadata.get_int("gpt-oss.expert_feed_forward_length"), 2880);
  EXPECT_EQ(metadata.get_int("gpt-oss.attention.key_length"), 64);
  EXPECT_EQ(metadata.get_string("gpt-oss.rope.scaling.type"), "yarn");
}

TEST(HfConfig, RefusesAGptOssThatLlamaCppWouldComputeOtherwise) {
  const Change changes[] = {
      {"swiglu_limit", "5.0", "'swiglu_limit': 5; a gpt-oss file has 7"},
      {"swiglu_alpha", "1.0", "'swiglu_alpha': 1; a gpt-oss file has 1.702"},
      {"attention_bias", "false", "'attention_bias' is false"},
      {"sliding_window", "null", "'sliding_window'"},
      {"hidden_act", R"("gelu")", "'hidden_act'"},
      {"rope_scaling", "null", "has no 'rope_scaling' and no 'rope_parameters'"},
      {"layer_types",
       R"(["full_attention", "sliding_attention", "full_attention", "full_attention"])",
       "'layer_types': layer 0"},
      {"num_local_experts", "2000", "2000 experts"},
  };
  for (const Change& change : changes) {
    Json config = gpt_oss();
    config[change.key] = Json::parse(change.value);
    EXPECT_NE(refusal(config).find(change.message), std::string::npos)
        << change.key << ": " << change.value << ": " << refusal(config);
  }
  // Of another family YaRN with such a ramp is no GGUF file's.
  Json llama = llama3();
  llama["rope_scaling"] = gpt_oss()["rope_scaling"];
  EXPECT_NE(refusal(llama).find("'truncate' is false"), std::string::npos) << refusal(llama);
  llama["rope_scaling"]["truncate"] = true;
  EXPECT_EQ(refusal(llama), "was taken");
}

/// Qwen3.5 0.8B's: a model of text and images, of which the text's part is converted.
Json qwen35() {
  return Json::parse(R"({"architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5", "tie_word_embeddings": true, "vision_config": {"depth": 12},
    "text_config": {"attention_bias": false, "attn_output_gate": true, "eos_token_id": 248044,
    "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu", "hidden_size": 1024,
    "intermediate_size": 3584, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 16, "linear_value_head_dim": 128,
    "max_position_embeddings": 262144, "mtp_num_hidden_layers": 1, "num_attention_heads": 8,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "tie_word_embeddings": true, "vocab_size": 248320, "rope_parameters": {
    "mrope_interleaved": true, "mrope_section": [11, 11, 10], "rope_type": "default",
    "rope_theta": 10000000, "partial_rotary_factor": 0.25}}})");
}

TEST(HfConfig, Qwen35SaysWhatItsDeltaNetsAre) {
  const HfConfig config = read_hf_config(qwen35());
  const GgufMetadata metadata = hf_model_metadata(config, 0);
  EXPECT_EQ(metadata.get_int("qwen35.rope.dimension_count"), 64);
  EXPECT_EQ(metadata.get_ints("qwen35.rope.dimension_sections"),
            (std::vector<int64_t>{11, 11, 10, 0}));
  EXPECT_EQ(metadata.get_int("qwen35.ssm.inner_size"), 2048);
  std::vector<uint8_t> recurrent(24);
  for (size_t i = 0; i < 24; ++i) recurrent[i] = i % 4 < 3;
  EXPECT_EQ(*metadata.find("qwen35.attention.recurrent_layers"),
            GgufValue(GgufArray{GgufValueType::kBool, recurrent}));
}

constexpr Change kQwen35Changes[] = {
    {"linear_num_key_heads", "5", "'linear_num_key_heads' (5) must divide"},
    {"linear_value_head_dim", "64", "'linear_value_head_dim' is 64"},
    {"linear_num_value_heads", "2147483647", "'linear_num_value_heads' must lie in 1 to 1048576"},
    {"linear_conv_kernel_dim", "null", "has no 'linear_conv_kernel_dim'"},
    {"layer_types", R"(["linear_attention"])", "'layer_types': wants 24 of them, found 1"},
    {"full_attention_interval", "0", "'full_attention_interval' must be positive"},
    {"attention_bias", "true", "'attention_bias'"},
    {"attn_output_gate", "false", "'attn_output_gate'"},
    {"rms_norm_eps", "1e-5", "'rms_norm_eps'"},
    {"rope_parameters", R"({"rope_type": "linear", "factor": 2})", "rope type 'linear'"},
    {"rope_parameters", R"({"partial_rotary_factor": 0.001})", "is no even number of elements"},
    {"rope_parameters", R"({"partial_rotary_factor": 2})", "is no even number of elements"},
    {"rope_parameters", R"({"mrope_section": [-1]})", "'mrope_section'"},
};

TEST(HfConfig, RefusesAQwen35ThatLlamaCppWouldComputeOtherwise) {
  for (const Change& change : kQwen35Changes) {
    Json config = qwen35();
    config["text_config"][change.key] = Json::parse(change.value);
    EXPECT_NE(refusal(config).find(change.message), std::string::npos)
        << change.key << ": " << change.value << ": " << refusal(config);
  }
  Json unknown = qwen35();
  unknown["text_config"]["layer_types"] = std::vector<std::string>(24, "sliding_attention");
  EXPECT_NE(refusal(unknown).find("found \"sliding_attention\""), std::string::npos);
  EXPECT_EQ(refusal(qwen35()), "was taken");
}

/// Qwen3-Next-80B-A3B's.
Json qwen3_next() {
  Json config = qwen3_moe();
  config["architectures"] = {"Qwen3NextForCausalLM"};
  config.update({{"head_dim", 256},
                 {"rms_norm_eps", 1e-6},
                 {"linear_conv_kernel_dim", 4},
                 {"linear_key_head_dim", 128},
                 {"linear_num_key_heads", 16},
                 {"linear_num_value_heads", 32},
                 {"linear_value_head_dim", 128},
                 {"num_experts", 512},
                 {"shared_expert_intermediate_size", 512}});
  return config;
}

TEST(HfConfig, MixturesWithASharedExpertSayHowWideItIs) {
  const GgufMetadata next = hf_model_metadata(read_hf_config(qwen3_next()), 1);
  EXPECT_EQ(next.get_int("qwen3next.expert_shared_feed_forward_length"), 512);
  EXPECT_EQ(next.get_int("qwen3next.expert_feed_forward_length"), 768);
  EXPECT_EQ(next.get_int("qwen3next.rope.dimension_count"), 64);
  EXPECT_FALSE(next.contains("qwen3next.rope.dimension_sections"));
  EXPECT_TRUE(next.contains("qwen3next.feed_forward_length"));
  Json config = qwen3_next();
  config["architectures"] = {"Qwen3_5MoeForCausalLM"};
  config.erase("intermediate_size");
  config.erase("norm_topk_prob");  // which its configuration class does not have
  const GgufMetadata moe = hf_model_metadata(read_hf_config(config), 1);
  EXPECT_FALSE(moe.contains("qwen35moe.feed_forward_length"));
  EXPECT_TRUE(moe.contains("qwen35moe.rope.dimension_sections"));
  const Change changes[] = {
      {"shared_expert_intermediate_size", "null", "has no 'shared_expert_intermediate_size'"},
      {"norm_topk_prob", "false", "'norm_topk_prob' is not true"},
      {"mlp_only_layers", "[0]", "experts in all layers"},
      {"linear_num_key_heads", "5", "'linear_num_key_heads' (5) must divide"},
      {"attention_bias", "true", "a qwen3next file has no biases"},
  };
  for (const Change& change : changes) {
    Json changed = qwen3_next();
    changed[change.key] = Json::parse(change.value);
    EXPECT_NE(refusal(changed).find(change.message), std::string::npos)
        << change.key << ": " << change.value << ": " << refusal(changed);
  }
}

}  // namespace
}  // namespace nibble
