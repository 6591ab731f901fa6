#include "quant/mix/quantize_file.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>

#include "base/error.h"
#include "base/progress.h"
#include "io/atomic_file.h"
#include "quant/format/rows.h"
#include "tests/io/temporary_folder.h"
#include "tests/quant/mix/model_file.h"

namespace nibble {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Numbers that no block format holds exactly.
float some_weight(size_t tensor, int64_t index) {
  return std::sin(0.37f * static_cast<float>(index) + static_cast<float>(tensor));
}

class QuantizeFile : public testing::Test {
 protected:
  GgufFile write(const std::vector<std::pair<std::string, std::vector<int64_t>>>& tensors,
                 const std::function<float(size_t, int64_t)>& weight = some_weight,
                 const GgufMetadata& metadata = metadata_of("llama", 1)) {
    write_model(in_, metadata, tensors, weight);
    return GgufFile::open(in_);
  }
  QuantizeStats quantize(const GgufFile& source, const std::string& type,
                         EncodeMethod method = EncodeMethod::kGgml) {
    PlanOptions options;
    options.type_name = type;
    options.allow_requantize = true;
    return quantize_file(source, make_plan(source, options), method, out_);
  }
  std::string refusal(const GgufFile& source, const std::string& type) {
    write_file(out_, "old");
    try {
      quantize(source, type);
    } catch (const Error& error) {
      EXPECT_EQ(read_file(out_), "old") << "the old file must stay";
      EXPECT_EQ(folder_.num_files(), 2u) << "nothing half-written may stay";
      return error.what();
    }
    return "";
  }

  TemporaryFolder folder_;
  const std::string in_ = folder_.file("in.gguf"), out_ = folder_.file("out.gguf");
};

TEST_F(QuantizeFile, EveryTensorIsTheEncodingOfItsSource) {
  const GgufFile source = write({{"token_embd.weight", {64, 5}},
                                 {"blk.0.attn_q.weight", {96, 7}},
                                 {"output_norm.weight", {64}}});
  const QuantizeStats stats = quantize(source, "Q4_0");
  const GgufFile out = GgufFile::open(out_);
  for (size_t i = 0; i < 3; ++i) {
    const GgufTensor &from = source.tensors()[i], &to = out.tensors()[i];
    EXPECT_EQ(to.name, from.name);
    std::vector<float> weights(static_cast<size_t>(from.num_weights()));
    std::memcpy(weights.data(), from.data.data(), from.data.size());
    const auto wanted = encode_tensor(to.type, weights, from.row_length(), {}, EncodeMethod::kGgml);
    EXPECT_TRUE(std::equal(to.data.begin(), to.data.end(), wanted.begin(), wanted.end()))
        << from.name;
  }
  EXPECT_EQ(out.tensor("token_embd.weight").type, GgmlType::kQ8_0);
  EXPECT_EQ(stats.num_tensors, 3);
  EXPECT_EQ(stats.num_converted, 2);
  EXPECT_EQ(stats.num_weights, 64 * 5 + 96 * 7 + 64);
  EXPECT_EQ(stats.bytes, 5 * 2 * 34 + 7 * 3 * 18 + 64 * 4);
}

TEST_F(QuantizeFile, PreparedTensorsAreWrittenAsTheyAre) {
  const GgufFile source =
      write({{"blk.0.attn_q.weight", {32, 2}}, {"blk.0.attn_k.weight", {32, 2}}});
  PlanOptions options;
  options.type_name = "Q4_0";
  const Plan plan = make_plan(source, options);
  std::vector<std::byte> bytes(static_cast<size_t>(2 * row_bytes(GgmlType::kQ4_0, 32)),
                               std::byte{17});
  const Prepared prepared = {"elsewhere", [&](const PlanEntry& entry) {
                               return entry.tensor == "blk.0.attn_q.weight" ? std::optional(bytes)
                                                                            : std::nullopt;
                             }};
  quantize_file(source, plan, EncodeMethod::kGgml, out_, {}, nullptr, &prepared);
  const GgufFile out = GgufFile::open(out_);
  EXPECT_EQ(out.metadata().get_string("nibble.method"), "elsewhere");
  const auto found = out.tensor("blk.0.attn_q.weight").data;
  EXPECT_TRUE(std::equal(found.begin(), found.end(), bytes.begin(), bytes.end()));
  quantize_file(source, plan, EncodeMethod::kGgml, folder_.file("plain.gguf"));
  const GgufFile plain = GgufFile::open(folder_.file("plain.gguf"));
  const auto other = out.tensor("blk.0.attn_k.weight").data;
  const auto wanted = plain.tensor("blk.0.attn_k.weight").data;
  EXPECT_TRUE(std::equal(other.begin(), other.end(), wanted.begin(), wanted.end()));
  // Bytes that do not make up the tensor leave no file behind.
  bytes.pop_back();
  std::filesystem::remove(out_);
  EXPECT_THROW(quantize_file(source, plan, EncodeMethod::kGgml, out_, {}, nullptr, &prepared),
               Error);
  EXPECT_FALSE(std::filesystem::exists(out_));
}

TEST_F(QuantizeFile, PiecesOfALargeTensorJoinSeamlesslyAndErrorsNameTheTrueRow) {
  constexpr int64_t kRows = 140000;  // 4.5 million weights: two pieces
  const auto tensors = std::vector<std::pair<std::string, std::vector<int64_t>>>{
      {"blk.0.attn_q.weight", {32, kRows}}};
  const GgufFile source = write(tensors);
  quantize(source, "Q8_0");
  std::vector<float> weights(32 * kRows);
  std::memcpy(weights.data(), source.tensors()[0].data.data(), weights.size() * sizeof(float));
  const auto wanted = encode_tensor(GgmlType::kQ8_0, weights, 32, {}, EncodeMethod::kGgml);
  const GgufFile out = GgufFile::open(out_);
  const auto found = out.tensors()[0].data;
  EXPECT_TRUE(std::equal(found.begin(), found.end(), wanted.begin(), wanted.end()));

  const GgufFile spoiled =
      write(tensors, [](size_t, int64_t i) { return i == 32 * 135000 + 17 ? kNan : 1.0f; });
  EXPECT_EQ(refusal(spoiled, "Q8_0"),
            in_ + ": tensor 'blk.0.attn_q.weight': row 135000, column 17 holds a NaN");
}

TEST_F(QuantizeFile, RefusesNumbersThatAreNone) {
  const auto infinite = write({{"blk.0.attn_q.weight", {32, 3}}},
                              [](size_t, int64_t i) { return i == 40 ? -INFINITY : 1.0f; });
  EXPECT_EQ(refusal(infinite, "Q4_0"),
            in_ + ": tensor 'blk.0.attn_q.weight': row 1, column 8 holds an infinity");
  const auto kept =
      write({{"output_norm.weight", {32}}}, [](size_t, int64_t i) { return i == 3 ? kNan : 1.0f; });
  EXPECT_EQ(refusal(kept, "Q4_0"),
            in_ + ": tensor 'output_norm.weight': row 0, column 3 holds a NaN");
  const auto large =
      write({{"blk.0.attn_q.weight", {32, 3}}}, [](size_t, int64_t) { return 1e30f; });
  EXPECT_NE(refusal(large, "Q4_0").find("tensor 'blk.0.attn_q.weight': row 0"), std::string::npos);
}

TEST_F(QuantizeFile, ATypeWithoutACodecIsNamedBeforeAnythingIsWritten) {
  const GgufFile source = write({{"blk.0.attn_q.weight", {32, 2}}});
  PlanOptions options;
  options.tensor_types = {{"attn_q", GgmlType::kQ8_1}};
  try {
    quantize_file(source, make_plan(source, options), EncodeMethod::kGgml, out_);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what())
                  .rfind(in_ + ": tensor 'blk.0.attn_q.weight': the plan's type for it, "
                               "Q8_1: asked for by name: no codec for tensor type 9 (Q8_1); "
                               "nibble has F32, F16, ",
                         0),
              0u)
        << error.what();
  }
  EXPECT_EQ(folder_.num_files(), 1u);
}

TEST_F(QuantizeFile, APlanOfAnotherFileIsRefused) {
  const Plan plan = make_plan(write({{"blk.0.attn_q.weight", {32, 2}}}), {});
  const auto refused = [&](const GgufFile& source) {
    EXPECT_THROW(quantize_file(source, plan, EncodeMethod::kGgml, out_), Error);
    EXPECT_EQ(folder_.num_files(), 1u);
  };
  refused(write({{"blk.0.attn_k.weight", {32, 2}}}));
  refused(write({{"blk.0.attn_q.weight", {32, 3}}}));
  refused(write({{"blk.0.attn_q.weight", {32, 2}}, {"output_norm.weight", {32}}}));
}

TEST_F(QuantizeFile, ReadsFloatsFromOddAddresses) {
  GgufMetadata metadata = metadata_of("llama", 1);
  metadata.set("general.alignment", uint32_t{1});
  // The header is a multiple of 4 long or it is not: four lengths of a key find an odd address.
  for (int extra = 0; extra < 4; ++extra) {
    metadata.set("general.name", std::string(static_cast<size_t>(extra), 'n'));
    const GgufFile source = write({{"blk.0.attn_q.weight", {32, 2}}}, some_weight, metadata);
    quantize(source, "Q4_0");
    std::vector<float> weights(64);
    for (int64_t i = 0; i < 64; ++i) weights[static_cast<size_t>(i)] = some_weight(0, i);
    const auto wanted = encode_tensor(GgmlType::kQ4_0, weights, 32, {}, EncodeMethod::kGgml);
    const GgufFile out = GgufFile::open(out_);
    EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), out.tensors()[0].data.begin()));
  }
}

TEST_F(QuantizeFile, EveryExpertIsEncodedWithItsOwnImportance) {
  // Rows of an expert that are no multiple of a piece's, and experts in one piece.
  for (const int64_t rows : {2500, 3}) {
    const GgufFile source = write({{"blk.0.attn_q.weight", {32, 3}},
                                   {"blk.0.attn_k.weight", {32, 3}},
                                   {"blk.0.ffn_up_exps.weight", {32, rows, 3}}});
    Imatrix imatrix;
    imatrix.path = "im.gguf";
    imatrix.entries["blk.0.attn_q.weight"].counts = {2};
    imatrix.entries["blk.0.ffn_up_exps.weight"].counts = {2, 0, 4};
    for (auto& [name, entry] : imatrix.entries)
      for (size_t i = 0; i < 32 * entry.counts.size(); ++i)
        entry.sums.push_back(static_cast<float>(i * i % 61));
    quantize_file(source, make_plan(source, {}), EncodeMethod::kGgml, out_, {}, &imatrix);
    const GgufFile out = GgufFile::open(out_);
    const auto expect_encoded = [&](size_t tensor, std::span<const float> importance, size_t matrix,
                                    size_t matrices) {
      const auto from = source.tensors()[tensor].data, to = out.tensors()[tensor].data;
      std::vector<float> weights(from.size() / sizeof(float) / matrices);
      std::memcpy(weights.data(), from.data() + matrix * weights.size() * sizeof(float),
                  weights.size() * sizeof(float));
      const auto wanted =
          encode_tensor(GgmlType::kQ4_0, weights, 32, importance, EncodeMethod::kGgml);
      const auto found = to.subspan(matrix * wanted.size(), wanted.size());
      EXPECT_TRUE(std::equal(found.begin(), found.end(), wanted.begin(), wanted.end()))
          << source.tensors()[tensor].name << " " << matrix << ", rows " << rows;
    };
    expect_encoded(0, mean_squares(imatrix.entries["blk.0.attn_q.weight"]), 0, 1);
    expect_encoded(1, {}, 0, 1);
    const auto experts = mean_squares(imatrix.entries["blk.0.ffn_up_exps.weight"]);
    for (size_t i = 0; i < 3; ++i) expect_encoded(2, std::span(experts).subspan(32 * i, 32), i, 3);
    EXPECT_EQ(out.metadata().get_int("quantize.imatrix.entries_count"), 2);
  }
}

TEST_F(QuantizeFile, AnImatrixThatDoesNotFitIsRefusedBeforeAnythingIsWritten) {
  const GgufFile source = write({{"blk.0.attn_q.weight", {32, 3}}});
  Imatrix imatrix;
  imatrix.path = "im.gguf";
  imatrix.entries["blk.0.attn_q.weight"] = {std::vector<float>(31), {1}};
  try {
    quantize_file(source, make_plan(source, {}), EncodeMethod::kGgml, out_, {}, &imatrix);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              in_ + ": im.gguf: entry 'blk.0.attn_q.weight' has 31 columns, wanted 32");
  }
  EXPECT_EQ(folder_.num_files(), 1u);
}

TEST_F(QuantizeFile, SearchIsNoWorseThanGgml) {
  const GgufFile source = write({{"blk.0.attn_q.weight", {256, 16}}});
  const auto squared_error = [&](EncodeMethod method) {
    quantize(source, "Q4_0", method);
    const GgufFile out = GgufFile::open(out_);
    std::vector<float> decoded(256 * 16);
    decode_tensor(GgmlType::kQ4_0, out.tensors()[0].data, decoded);
    double sum = 0;
    for (size_t i = 0; i < decoded.size(); ++i)
      sum += std::pow(decoded[i] - some_weight(0, static_cast<int64_t>(i)), 2.0);
    return sum;
  };
  EXPECT_LE(squared_error(EncodeMethod::kSearch), squared_error(EncodeMethod::kGgml));
}

TEST_F(QuantizeFile, MetadataIsTheSourcesAndWhatLlamaQuantizeSets) {
  GgufMetadata source = metadata_of("llama", 1);
  source.set("general.file_type", uint32_t{0});
  source.set("split.count", uint16_t{1});
  source.set("nibble.tensor_hashes", std::string("of the source"));
  source.set("general.name", std::string("model"));
  Plan plan;
  plan.file_type = 2;
  plan.metadata = {{"general.name", std::string("another")}};
  const GgufMetadata found = quantized_metadata(source, plan, EncodeMethod::kSearch);
  std::vector<std::string> keys;
  for (const auto& [key, value] : found.pairs()) keys.push_back(key);
  EXPECT_EQ(keys, (std::vector<std::string>{"general.architecture", "llama.block_count",
                                            "general.quantization_version", "general.file_type",
                                            "general.name", "nibble.version", "nibble.method"}));
  EXPECT_EQ(found.get_string("general.name"), "another");
  EXPECT_EQ(*found.find("general.file_type"), GgufValue(uint32_t{2}));
  EXPECT_EQ(*found.find("general.quantization_version"), GgufValue(uint32_t{2}));
  EXPECT_EQ(found.get_string("nibble.method"), "search");
}

TEST_F(QuantizeFile, PrunedLayersAreLeftOutAndTheRestMovesUp) {
  const GgufFile source = write({{"blk.0.attn_q.weight", {32, 2}},
                                 {"blk.1.attn_q.weight", {32, 3}},
                                 {"blk.2.attn_q.weight", {32, 5}},
                                 {"output_norm.weight", {32}}},
                                some_weight, metadata_of("llama", 3));
  PlanOptions options;
  options.pruned_layers = {1};
  quantize_file(source, make_plan(source, options), EncodeMethod::kGgml, out_);
  const GgufFile out = GgufFile::open(out_);
  EXPECT_EQ(out.tensors().size(), 3u);
  EXPECT_EQ(out.metadata().get_int("llama.block_count"), 2);
  std::vector<float> weights(32 * 5);
  for (int64_t i = 0; i < 32 * 5; ++i) weights[static_cast<size_t>(i)] = some_weight(2, i);
  const auto wanted = encode_tensor(GgmlType::kQ4_0, weights, 32, {}, EncodeMethod::kGgml);
  const auto found = out.tensor("blk.1.attn_q.weight").data;
  EXPECT_TRUE(std::equal(found.begin(), found.end(), wanted.begin(), wanted.end()));
  Plan spoiled = make_plan(source, options);
  spoiled.pruned_layers = {2};
  EXPECT_THROW(quantize_file(source, spoiled, EncodeMethod::kGgml, out_), Error);
}

TEST_F(QuantizeFile, ATypeThatIsOnlyDecodedNamesTheNearest) {
  const GgufFile source = write({{"blk.0.attn_q.weight", {256, 2}}});
  PlanOptions options;
  options.tensor_types = {{"attn_q", GgmlType::kIQ2_S}};
  try {
    check_encodable(make_plan(source, options));
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              "tensor 'blk.0.attn_q.weight': the plan's type for it, IQ2_S: asked for by name: " +
                  encode_refusal("IQ2_S"));
  }
}

/// The outputs of two types, and of one of them without a layer.
std::vector<QuantizeOutput> three_outputs(const GgufFile& source, const TemporaryFolder& folder) {
  std::vector<QuantizeOutput> outputs;
  for (const char* type : {"Q4_0", "Q8_0", "Q4_0"}) {
    PlanOptions options;
    options.type_name = type;
    if (outputs.size() == 2) options.pruned_layers = {0};
    outputs.push_back({make_plan(source, options), folder.file(concat(outputs.size(), ".gguf"))});
  }
  return outputs;
}

TEST_F(QuantizeFile, SeveralOutputsAreEachWhatTheyAreAlone) {
  const GgufFile source = write({{"token_embd.weight", {64, 5}},
                                 {"blk.0.attn_q.weight", {64, 7000}},
                                 {"blk.1.attn_q.weight", {64, 3}},
                                 {"output_norm.weight", {64}}},
                                some_weight, metadata_of("llama", 2));
  const auto outputs = three_outputs(source, folder_);
  const auto stats = quantize_files(source, outputs, EncodeMethod::kGgml);
  ASSERT_EQ(stats.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    const auto alone = quantize_file(source, outputs[i].plan, EncodeMethod::kGgml, out_);
    EXPECT_EQ(read_file(outputs[i].path), read_file(out_)) << i;
    EXPECT_EQ(stats[i].bytes, alone.bytes);
    EXPECT_EQ(stats[i].num_converted, alone.num_converted);
    EXPECT_EQ(stats[i].source_bytes, alone.source_bytes);
  }
  EXPECT_EQ(stats[2].num_tensors, 3);
  EXPECT_EQ(stats[2].num_weights, 64 * (5 + 3 + 1));
}

TEST_F(QuantizeFile, AnErrorLeavesTheOldFilesOfAllOutputs) {
  const GgufFile source = write(
      {{"blk.0.attn_q.weight", {64, 3}}, {"blk.1.attn_q.weight", {64, 3}}},
      [](size_t tensor, int64_t i) { return tensor == 1 && i == 70 ? kNan : 1.0f; },
      metadata_of("llama", 2));
  auto outputs = three_outputs(source, folder_);
  write_file(outputs[1].path, "old");
  EXPECT_THROW(quantize_files(source, outputs, EncodeMethod::kGgml), Error);
  EXPECT_EQ(read_file(outputs[1].path), "old");
  EXPECT_EQ(folder_.num_files(), 2u);
  outputs[2].plan.entries[0].target = GgmlType::kQ8_1;
  try {
    quantize_files(source, outputs, EncodeMethod::kGgml);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {  // names the output
    EXPECT_EQ(std::string(error.what()).find(in_ + ": Q4_0: tensor 'blk.1.attn_q.weight': "), 0u);
  }
}

TEST(EncodeMethodNames, GoBothWays) {
  for (const EncodeMethod method : {EncodeMethod::kGgml, EncodeMethod::kRtn, EncodeMethod::kSearch})
    EXPECT_EQ(method_named(method_name(method)), method);
  EXPECT_THROW(method_named("gglm"), Error);
}

}  // namespace
}  // namespace nibble
