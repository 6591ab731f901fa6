#include "quant/mix/plan.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "quant/mix/quantize_file.h"
#include "tests/io/temporary_folder.h"
#include "tests/quant/mix/model_file.h"

namespace nibble {
namespace {

using Tensors = std::vector<std::pair<std::string, std::vector<int64_t>>>;

class PlanOfFile : public testing::Test {
 protected:
  Plan plan(const GgufMetadata& metadata, const Tensors& tensors, const PlanOptions& options) {
    write_model(folder_.file("m.gguf"), metadata, tensors, [](size_t, int64_t) { return 0.5f; });
    return make_plan(GgufFile::open(folder_.file("m.gguf")), options);
  }
  /// The target of the only tensor asked about, in a file of `tensors`.
  GgmlType target(const Tensors& tensors, const std::string& name, const PlanOptions& options,
                  const GgufMetadata& metadata = metadata_of("llama", 8)) {
    return plan(metadata, tensors, options).find(name)->target;
  }

  static PlanOptions type(const std::string& name) {
    PlanOptions options;
    options.type_name = name;
    return options;
  }

  TemporaryFolder folder_;
};

TEST_F(PlanOfFile, TheOutputGetsMoreBits) {
  const Tensors separate = {{"token_embd.weight", {256, 4}}, {"output.weight", {256, 4}}};
  EXPECT_EQ(target(separate, "output.weight", type("Q4_0")), GgmlType::kQ6_K);
  EXPECT_EQ(target(separate, "token_embd.weight", type("Q4_0")), GgmlType::kQ4_0);
  EXPECT_EQ(target(separate, "output.weight", type("Q8_0")), GgmlType::kQ8_0);
  EXPECT_EQ(target(separate, "output.weight", type("F16")), GgmlType::kF16);
  EXPECT_EQ(target(separate, "token_embd.weight", type("Q2_0")), GgmlType::kQ4_K);
  EXPECT_EQ(target(separate, "output.weight", type("Q4_0"), metadata_of("falcon", 8)),
            GgmlType::kQ8_0);
}

TEST_F(PlanOfFile, ATiedEmbeddingIsTheOutput) {
  EXPECT_EQ(target({{"token_embd.weight", {256, 4}}}, "token_embd.weight", type("Q4_0")),
            GgmlType::kQ6_K);
  EXPECT_EQ(target({{"token_embd.weight", {576, 4}}}, "token_embd.weight", type("Q2_0")),
            GgmlType::kQ8_0);
  EXPECT_EQ(target({{"token_embd.weight", {172, 4}}}, "token_embd.weight", type("Q4_0")),
            GgmlType::kF16);
}

TEST_F(PlanOfFile, ReasonsAreToldInOrder) {
  const Plan found = plan(metadata_of("llama", 8),
                          {{"token_embd.weight", {576, 4}},
                           {"blk.0.attn_norm.weight", {576}},
                           {"blk.0.attn_q.weight", {64, 4}}},
                          type("q4_0"));
  EXPECT_EQ(found.type_name, "Q4_0");
  EXPECT_EQ(found.file_type, 2);
  EXPECT_EQ(found.entries[0].reason,
            "Q6_K: embedding, also the output; Q8_0: rows of 576, no multiple of 256");
  EXPECT_EQ(found.entries[1].reason, "kept: fewer than 2 dimensions");
  EXPECT_EQ(found.entries[2].reason, "Q4_0");
  EXPECT_EQ(found.total_bytes(), 4 * 18 * 34 + 576 * 4 + 4 * 2 * 18);
}

TEST_F(PlanOfFile, EarlyFfnDownGetsAMinOnlyWithAnImatrix) {
  Tensors tensors = {{"output.weight", {64, 4}}};
  for (int layer = 15; layer >= 0; --layer)  // the file's order is not the layers' order
    tensors.push_back({"blk." + std::to_string(layer) + ".ffn_down.weight", {64, 4}});
  PlanOptions options = type("Q4_0");
  const GgufMetadata metadata = metadata_of("llama", 16);
  EXPECT_EQ(target(tensors, "blk.0.ffn_down.weight", options, metadata), GgmlType::kQ4_0);
  options.has_imatrix = true;
  EXPECT_EQ(target(tensors, "blk.0.ffn_down.weight", options, metadata), GgmlType::kQ4_1);
  EXPECT_EQ(target(tensors, "blk.1.ffn_down.weight", options, metadata), GgmlType::kQ4_1);
  EXPECT_EQ(target(tensors, "blk.2.ffn_down.weight", options, metadata), GgmlType::kQ4_0);
  options.type_name = "Q5_0";
  EXPECT_EQ(target(tensors, "blk.1.ffn_down.weight", options, metadata), GgmlType::kQ5_1);
  options.type_name = "Q4_1";
  EXPECT_EQ(target(tensors, "blk.1.ffn_down.weight", options, metadata), GgmlType::kQ4_1);
}

TEST_F(PlanOfFile, EightExpertsGetLargeKAndV) {
  const Tensors tensors = {{"output.weight", {64, 4}},
                           {"blk.0.attn_v.weight", {64, 4}},
                           {"blk.0.attn_k.weight", {64, 4}},
                           {"blk.0.attn_q.weight", {64, 4}}};
  for (const uint32_t experts : {4u, 8u, 16u}) {
    const GgmlType wanted = experts == 8 ? GgmlType::kQ8_0 : GgmlType::kQ4_0;
    const Plan found = plan(metadata_of("llama", 1, experts), tensors, type("Q4_0"));
    EXPECT_EQ(found.find("blk.0.attn_v.weight")->target, wanted) << experts;
    EXPECT_EQ(found.find("blk.0.attn_k.weight")->target, wanted) << experts;
    EXPECT_EQ(found.find("blk.0.attn_q.weight")->target, GgmlType::kQ4_0) << experts;
  }
}

/// The types of the tensors "blk.N.<part>.weight" of a plan, in the layers' order.
std::vector<GgmlType> types_by_layer(const Plan& plan, const std::string& part, int layers) {
  std::vector<GgmlType> types;
  for (int layer = 0; layer < layers; ++layer)
    types.push_back(plan.find(concat("blk.", layer, '.', part, ".weight"))->target);
  return types;
}

TEST_F(PlanOfFile, SomeLayersOfAMixGetMoreBits) {
  Tensors tensors = {{"output.weight", {256, 4}}};
  for (int layer = 7; layer >= 0; --layer)  // the file's order is not the layers' order
    for (const char* part : {"attn_v", "ffn_down", "attn_q"})
      tensors.push_back({concat("blk.", layer, '.', part, ".weight"), {256, 4}});
  constexpr GgmlType k4 = GgmlType::kQ4_K, k5 = GgmlType::kQ5_K, k6 = GgmlType::kQ6_K;
  // The first and the last eighth, and every third layer between them.
  const std::vector<GgmlType> some_six = {k6, k4, k4, k6, k4, k4, k6, k6};
  const Plan medium = plan(metadata_of("llama", 8), tensors, type("q4_k_m"));
  EXPECT_EQ(types_by_layer(medium, "attn_v", 8), some_six);
  EXPECT_EQ(types_by_layer(medium, "ffn_down", 8), some_six);
  EXPECT_EQ(types_by_layer(medium, "attn_q", 8), std::vector(8, k4));
  EXPECT_EQ(medium.find("output.weight")->target, k6);
  EXPECT_EQ(medium.find("blk.0.attn_v.weight")->reason, "Q6_K: attn_v");
  EXPECT_EQ(medium.file_type, 15);
  const Plan small = plan(metadata_of("llama", 8), tensors, type("Q4_K_S"));
  EXPECT_EQ(types_by_layer(small, "attn_v", 8),
            (std::vector<GgmlType>{k5, k5, k5, k5, k4, k4, k4, k4}));
  EXPECT_EQ(types_by_layer(small, "ffn_down", 8),
            (std::vector<GgmlType>{k5, k4, k4, k4, k4, k4, k4, k4}));
}

TEST_F(PlanOfFile, HeadsThatShareAVGiveItMoreBits) {
  GgufMetadata metadata = metadata_of("llama", 1);
  const Tensors tensors = {{"output.weight", {256, 4}}, {"blk.0.attn_v.weight", {256, 4}}};
  const auto v_with = [&](GgufValue heads, GgufValue kv_heads) {
    metadata.set("llama.attention.head_count", std::move(heads));
    metadata.set("llama.attention.head_count_kv", std::move(kv_heads));
    return target(tensors, "blk.0.attn_v.weight", type("Q2_K"), metadata);
  };
  EXPECT_EQ(v_with(uint32_t{8}, uint32_t{8}), GgmlType::kQ3_K);
  EXPECT_EQ(v_with(uint32_t{8}, uint32_t{2}), GgmlType::kQ4_K);
  const GgufArray per_layer = {GgufValueType::kInt32, std::vector<int32_t>{2}};
  EXPECT_EQ(v_with(uint32_t{8}, per_layer), GgmlType::kQ4_K);
  EXPECT_EQ(v_with(uint32_t{8}, uint32_t{0}), GgmlType::kQ3_K);
}

TEST_F(PlanOfFile, ATypeMayBeNamedByAliasOrNumber) {
  const Tensors tensors = {{"output.weight", {256, 4}}};
  for (const char* name : {"Q3_K", "12", "q3_k"}) {
    const Plan found = plan(metadata_of("llama", 1), tensors, type(name));
    EXPECT_EQ(found.type_name, "Q3_K");
    EXPECT_EQ(found.file_type, 12);
  }
}

TEST_F(PlanOfFile, OnlyExpertsBecomeMxfp4) {
  const Tensors tensors = {{"output.weight", {256, 4}},
                           {"token_embd.weight", {256, 4}},
                           {"blk.0.attn_v.weight", {256, 4}},
                           {"blk.0.ffn_up_exps.weight", {256, 4, 2}}};
  const Plan found = plan(metadata_of("llama", 1, 2), tensors, type("MXFP4_MOE"));
  for (const PlanEntry& entry : found.entries)
    EXPECT_EQ(entry.target, entry.shape.size() == 3 ? GgmlType::kMXFP4 : GgmlType::kQ8_0)
        << entry.tensor;
}

TEST_F(PlanOfFile, ACopyKeepsEveryType) {
  const Tensors tensors = {{"output.weight", {256, 4}}, {"blk.0.attn_v.weight", {256, 4}}};
  GgufMetadata metadata = metadata_of("llama", 1);
  const Plan guessed = plan(metadata, tensors, type("copy"));
  EXPECT_EQ(guessed.file_type, 1024) << "llama.cpp's mark of what the file did not say";
  EXPECT_EQ(guessed.type_name, "COPY");
  for (const PlanEntry& entry : guessed.entries) EXPECT_EQ(entry.target, GgmlType::kF32);
  metadata.set("general.file_type", uint32_t{7});
  EXPECT_EQ(plan(metadata, tensors, type("COPY")).file_type, 7);
}

TEST_F(PlanOfFile, PrunedLayersAreNotPlannedAndMetadataTellsOfTheRest) {
  Tensors tensors = {{"output.weight", {256, 4}}};
  for (int layer = 0; layer < 4; ++layer)
    tensors.push_back({concat("blk.", layer, ".attn_v.weight"), {256, 4}});
  GgufMetadata metadata = metadata_of("llama", 4);
  metadata.set("llama.attention.head_count",
               GgufArray{GgufValueType::kInt32, std::vector<int32_t>{8, 4, 2, 1}});
  PlanOptions options = type("Q4_K_M");
  options.pruned_layers = {0, 2};
  const Plan found = plan(metadata, tensors, options);
  ASSERT_EQ(found.entries.size(), 3u);
  EXPECT_EQ(found.entries[1].tensor, "blk.1.attn_v.weight");
  EXPECT_EQ(found.entries[2].tensor, "blk.3.attn_v.weight");
  ASSERT_EQ(found.metadata.size(), 2u);
  EXPECT_EQ(found.metadata[0].second,
            GgufValue(GgufArray{GgufValueType::kInt32, std::vector<int32_t>{4, 1}}));
  EXPECT_EQ(found.metadata[1].first, "llama.block_count");
  EXPECT_EQ(found.metadata[1].second, GgufValue(uint32_t{2}));
}

TEST_F(PlanOfFile, MetadataInThePlaceOfTheSourcesCountsForTheRules) {
  const Tensors tensors = {{"output.weight", {64, 4}}, {"blk.0.attn_v.weight", {64, 4}}};
  PlanOptions options = type("Q4_0");
  options.metadata = {{"llama.expert_count", uint32_t{8}}};
  EXPECT_EQ(target(tensors, "blk.0.attn_v.weight", options), GgmlType::kQ8_0);
}

TEST_F(PlanOfFile, Overrides) {
  const Tensors tensors = {{"token_embd.weight", {64, 4}},
                           {"output.weight", {64, 4}},
                           {"blk.0.attn_v.weight", {64, 4}},
                           {"blk.0.attn_norm.weight", {64, 4}}};
  PlanOptions options = type("Q4_0");
  options.pure = true;
  EXPECT_EQ(target(tensors, "output.weight", options), GgmlType::kQ4_0);
  options = type("Q4_0");
  options.leave_output_tensor = true;
  EXPECT_EQ(target(tensors, "output.weight", options), GgmlType::kF32);
  options = type("F16");
  options.output_type = GgmlType::kQ8_0;
  options.token_embedding_type = GgmlType::kQ5_1;
  EXPECT_EQ(target(tensors, "output.weight", options), GgmlType::kQ8_0);
  EXPECT_EQ(target(tensors, "token_embd.weight", options), GgmlType::kQ5_1);
  EXPECT_EQ(target(tensors, "blk.0.attn_v.weight", options), GgmlType::kF16);
  options = type("Q4_0");
  options.tensor_types = {{"ATTN_[VN]", GgmlType::kQ8_0}, {"attn_v", GgmlType::kQ5_0}};
  EXPECT_EQ(target(tensors, "blk.0.attn_v.weight", options), GgmlType::kQ8_0);
  EXPECT_EQ(target(tensors, "blk.0.attn_norm.weight", options), GgmlType::kF32)
      << "norms are never quantized";
}

std::string usage_error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), 2);
    return error.what();
  }
  return "";
}

TEST_F(PlanOfFile, WhatCannotBe) {
  const Tensors tensors = {{"token_embd.weight", {36, 4}}, {"output.weight", {64, 4}}};
  EXPECT_EQ(usage_error_of([&] { plan({}, tensors, type("Q4_9")); }),
            "unknown quantization type 'Q4_9' (did you mean 'Q4_0'?)");
  PlanOptions options = type("Q4_0");
  options.token_embedding_type = GgmlType::kQ8_0;
  EXPECT_EQ(usage_error_of([&] { plan({}, tensors, options); }),
            "tensor 'token_embd.weight': Q8_0 was asked for, but rows of 36 weights are no "
            "multiple of its block "
            "of 32");
  EXPECT_NE(usage_error_of([&] {
              PlanOptions prunes = type("Q4_0");
              prunes.pruned_layers = {8};
              plan(metadata_of("llama", 8), tensors, prunes);
            }).find("has no layer 8 to prune, but 8"),
            std::string::npos);
  EXPECT_THROW(plan(metadata_of("llama", 8), tensors, type("Q1_0")), Error);
  options = type("Q4_0");
  options.tensor_types = {{"attn_(", GgmlType::kQ8_0}};
  EXPECT_NE(
      usage_error_of([&] { plan({}, tensors, options); }).find("'attn_(': no regular expression"),
      std::string::npos);
}

TEST_F(PlanOfFile, QuantizedSourcesChangeTypeOnlyWhenAllowed) {
  const std::string path = folder_.file("quantized.gguf");
  GgufWriter writer(path, metadata_of("llama", 1),
                    {{"blk.0.attn_q.weight", {32, 1, 2}, GgmlType::kQ8_0}});
  writer.write(std::vector<std::byte>(68));
  writer.finish();
  const GgufFile source = GgufFile::open(path);
  EXPECT_NE(usage_error_of([&] {
              make_plan(source, type("Q4_0"));
            }).find("'blk.0.attn_q.weight' is Q8_0 already"),
            std::string::npos);
  EXPECT_EQ(make_plan(source, type("Q8_0")).entries[0].target, GgmlType::kQ8_0);
  PlanOptions options = type("Q4_0");
  options.allow_requantize = true;
  EXPECT_EQ(make_plan(source, options).entries[0].target, GgmlType::kQ4_0);
}

TEST_F(PlanOfFile, JsonHoldsTheWholePlan) {
  const Plan written =
      plan(metadata_of("llama", 8),
           {{"token_embd.weight", {64, 4}}, {"a \"quoted\" n\u00e4me.weight", {32, 1, 2}}},
           type("Q5_1"));
  const Plan read = Plan::from_json(written.to_json());
  EXPECT_EQ(read.to_json(), written.to_json());
  ASSERT_EQ(read.entries.size(), 2u);
  EXPECT_EQ(read.file_type, 9);
  EXPECT_EQ(read.entries[1].tensor, written.entries[1].tensor);
  EXPECT_EQ(read.entries[1].shape, written.entries[1].shape);
  EXPECT_EQ(read.entries[1].target, written.entries[1].target);
}

std::string json_refusal(const std::string& text) {
  try {
    Plan::from_json(text);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string json_of_tensor(const std::string& tensor) {
  return R"({"type": "Q4_0", "file_type": 2, "tensors": [)" + tensor + "]}";
}

TEST(PlanJson, HostileTextIsRefusedWithItsPlace) {
  const std::string good =
      R"({"name": "w", "shape": [32, 2], "source": "F32", "target": "Q4_0", "reason": ""})";
  EXPECT_EQ(json_refusal(json_of_tensor(good)), "");
  EXPECT_EQ(json_refusal(json_of_tensor(good + "," + good)), "plan: tensor 'w' comes twice");
  EXPECT_EQ(json_refusal(""), "plan: no JSON: error at byte 1");
  EXPECT_EQ(json_refusal("[1, 2]"), "plan: wants an object, found array");
  EXPECT_EQ(json_refusal(R"({"type": "Q4_0"})"), "plan: has no 'file_type'");
  EXPECT_EQ(json_refusal(R"({"type": 4, "file_type": 2})"),
            "plan: 'type' is of the wrong type, number");
  EXPECT_EQ(json_refusal(json_of_tensor("3")), "plan: tensor 0: wants an object, found number");
  EXPECT_NE(json_refusal(std::string(100000, '[')), "");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    return json_refusal(json_of_tensor(text.replace(text.find(from), from.size(), to)));
  };
  EXPECT_EQ(with("Q4_0", "Q4_9"), "plan: tensor 0: 'w': 'target': unknown tensor type 'Q4_9'");
  EXPECT_EQ(with("[32, 2]", "[33, 2]"), "plan: tensor 0: 'w': rows of 33 weights cannot be Q4_0");
  EXPECT_EQ(with("[32, 2]", "[32, -2]"), "plan: tensor 0: 'w': 'shape': impossible dimension -2");
  EXPECT_EQ(with("[32, 2]", "[32, 2.5]"), "plan: tensor 0: 'w': 'shape': impossible dimension 2.5");
  EXPECT_EQ(with("[32, 2]", "[32, 9223372036854775807]"),
            "plan: tensor 0: 'w': 'shape': impossible dimension 9223372036854775807");
  EXPECT_EQ(with("[32, 2]", "[32, 18446744073709551615]"),
            "plan: tensor 0: 'w': 'shape': impossible dimension 18446744073709551615");
  EXPECT_EQ(with("[32, 2]", "[32, 1, 1, 1, 1]"),
            "plan: tensor 0: 'w': 'shape': wants an array of at most 4 dimensions");
}

TEST(PlanLike, TakesTheTypesOfAnotherFile) {
  const TemporaryFolder folder;
  const std::string source_path = folder.file("f32.gguf"), path = folder.file("q.gguf");
  const auto weight = [](size_t, int64_t i) { return static_cast<float>(i % 17) - 8.0f; };
  write_model(source_path, metadata_of("llama", 1),
              {{"token_embd.weight", {256, 8}}, {"blk.0.attn_v.weight", {256, 4}}}, weight);
  const GgufFile source = GgufFile::open(source_path);
  PlanOptions options;
  options.type_name = "Q3_K_M";
  quantize_file(source, make_plan(source, options), EncodeMethod::kGgml, path);
  const GgufFile file = GgufFile::open(path);
  const Plan plan = plan_like(source, file);
  EXPECT_EQ(plan.type_name, "Q3_K_M");
  EXPECT_EQ(plan.file_type, 12);
  ASSERT_EQ(plan.entries.size(), 2u);
  for (const PlanEntry& entry : plan.entries) {
    EXPECT_EQ(entry.source, GgmlType::kF32);
    EXPECT_EQ(entry.target, file.tensor(entry.tensor).type);
  }

  const auto refusal = [&](const Tensors& tensors) {
    const std::string other = folder.file("other.gguf");
    write_model(other, metadata_of("llama", 1), tensors, weight);
    try {
      plan_like(source, GgufFile::open(other));
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), 2);
      return std::string(error.what()).substr(other.size());
    }
    return std::string("none");
  };
  EXPECT_EQ(refusal({{"token_embd.weight", {256, 8}}}),
            ": has no tensor 'blk.0.attn_v.weight', which " + source_path + " has");
  EXPECT_EQ(refusal({{"token_embd.weight", {256, 8}}, {"blk.0.attn_v.weight", {256, 5}}}),
            ": tensor 'blk.0.attn_v.weight' has another shape than in " + source_path);
  EXPECT_EQ(refusal({{"token_embd.weight", {256, 8}},
                     {"blk.0.attn_v.weight", {256, 4}},
                     {"output.weight", {256, 8}}}),
            ": has tensor 'output.weight', which " + source_path + " lacks");
}

}  // namespace
}  // namespace nibble
