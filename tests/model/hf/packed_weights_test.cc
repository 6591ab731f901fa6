#include "model/hf/packed_weights.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/float16.h"
#include "io/safetensors.h"
#include "quant/format/rows.h"
#include "tests/io/temporary_folder.h"
#include "tests/model/hf/tiny_folder.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

struct Part {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<std::byte> data;
};

template <class T>
Part part(const std::string& dtype, std::vector<int64_t> shape, T value) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  const std::vector<T> values(static_cast<size_t>(count), value);
  const auto bytes = std::as_bytes(std::span(values));
  return {dtype, std::move(shape), {bytes.begin(), bytes.end()}};
}

/// A matrix x.weight of 8 rows and 64 columns in groups of 32, as GPTQ's first format has it.
class PackedWeightsTest : public testing::Test {
 protected:
  PackedMatrix open(int64_t rows = 8, int64_t columns = 64) {
    std::vector<SafetensorsEntry> entries;
    for (const auto& [name, part] : parts_)
      entries.push_back({name, part.dtype, part.shape, part.data});
    write_safetensors(folder_.file("model.safetensors"), entries, {});
    checkpoint_ = HfCheckpoint::open(folder_.path());
    auto matrix = PackedMatrix::find(*checkpoint_, quantization_, "x.weight", rows, columns);
    check(matrix.has_value(), "not found");
    return *matrix;
  }
  void expect_complaint(const std::vector<std::string>& wanted) {
    try {
      const PackedMatrix matrix = open();
      std::vector<std::byte> blocks(64 / 32 * 20);
      matrix.write_blocks(matrix.block_type(), 0, blocks);
      FAIL() << "no complaint";
    } catch (const Error& error) {
      for (const std::string& part : wanted)
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
  template <class T>
  void put(const std::string& name, size_t index, T value) {
    std::memcpy(parts_.at(name).data.data() + index * sizeof value, &value, sizeof value);
  }

  HfQuantization quantization_{"gptq", HfPacking::kGptq, 32, true, false};
  std::map<std::string, Part> parts_ = {{"x.qweight", part("I32", {8, 8}, uint32_t{0x99999999})},
                                        {"x.qzeros", part("I32", {2, 1}, uint32_t{0x77777777})},
                                        {"x.scales", part("F16", {2, 8}, uint16_t{0x3800})},  // 0.5
                                        {"x.g_idx", part("I32", {64}, int32_t{0})}};
  TemporaryFolder folder_;
  std::optional<HfCheckpoint> checkpoint_;

  PackedWeightsTest() {
    for (size_t i = 32; i < 64; ++i) put("x.g_idx", i, int32_t{1});
  }
};

TEST_F(PackedWeightsTest, SymmetricCodesAreQ4_0) {
  const PackedMatrix matrix = open();
  EXPECT_EQ(matrix.block_type(), GgmlType::kQ4_0);
  std::vector<std::byte> blocks(2 * 18);
  matrix.write_blocks(matrix.block_type(), 3, blocks);
  EXPECT_EQ(blocks[0], std::byte{0});
  EXPECT_EQ(blocks[1], std::byte{0x38});
  EXPECT_EQ(blocks[2], std::byte{0x99});
  std::vector<float> weights(64);
  matrix.decode(3, weights);
  EXPECT_EQ(weights, std::vector<float>(64, 0.5f));
}

TEST_F(PackedWeightsTest, OneOtherZeroMakesItQ4_1) {
  put("x.qzeros", 1, uint32_t{0x77727777});  // row 4 of the second group: stored 2 is 3
  const PackedMatrix matrix = open();
  EXPECT_EQ(matrix.block_type(), GgmlType::kQ4_1);
  std::vector<float> weights(64);
  matrix.decode(4, weights);
  EXPECT_EQ(weights[31], 0.5f);
  EXPECT_EQ(weights[32], 3.0f);
  std::vector<std::byte> blocks(2 * 20);
  matrix.write_blocks(matrix.block_type(), 4, blocks);
  uint16_t minimum;
  std::memcpy(&minimum, blocks.data() + 22, 2);
  EXPECT_EQ(float16_to_float(minimum), -1.5f);
}

TEST_F(PackedWeightsTest, SymmetricCodesCanBeQ4_1Too) {
  std::vector<std::byte> blocks(2 * 20);
  open().write_blocks(GgmlType::kQ4_1, 3, blocks);
  std::vector<float> weights(64);
  decode_tensor(GgmlType::kQ4_1, blocks, weights);
  EXPECT_EQ(weights, std::vector<float>(64, 0.5f));
}

TEST_F(PackedWeightsTest, HostileParts) {
  const auto parts = parts_;
  const auto with = [&](const std::function<void()>& change,
                        const std::vector<std::string>& wanted) {
    parts_ = parts;
    change();
    expect_complaint(wanted);
  };
  with([&] { parts_.erase("x.scales"); }, {"'x.scales' is missing"});
  with([&] { parts_.erase("x.qzeros"); }, {"'x.qzeros' is missing"});
  with(
      [&] {
        parts_["x.qweight"] = part("I32", {8, 7}, 0);
      },
      {"'x.qweight'", "I32 [8, 7]", "I32 [8, 8]"});
  with([&] { parts_["x.qweight"] = part("I64", {8, 8}, int64_t{0}); }, {"I64 [8, 8]"});
  with([&] { parts_["x.scales"] = part("F16", {1, 8}, uint16_t{0}); }, {"[1, 8]", "[2, 8]"});
  with([&] { parts_["x.scales"] = part("I32", {2, 8}, 0); }, {"F16 or BF16 or F32 [2, 8]"});
  with([&] { put("x.qzeros", 0, uint32_t{0xf7777777}); }, {"row 7, group 0", "16 to some"});
  with([&] { put("x.g_idx", 5, int32_t{2}); }, {"x.g_idx", "names group 2, there are 2"});
  with([&] { put("x.g_idx", 5, int32_t{-1}); }, {"names group -1"});
  with([&] { put("x.g_idx", 5, int32_t{1}); }, {"columns 0 and 5", "--outtype f16"});
  with([&] { parts_["x.g_idx"] = part("I32", {63}, 0); }, {"I32 [63]", "I32 [64]"});
  with([&] { put("x.scales", 0, uint16_t{0x7c00}); }, {"beyond float16"});
  with(
      [&] {
        parts_["x.weight"] = part("F16", {8, 64}, uint16_t{0});
      },
      {"both packed and as it is"});
  quantization_.group_size = 16;
  with([&] { parts_["x.scales"] = part("F16", {4, 8}, uint16_t{0}); }, {"'x.qzeros'", "[4, 1]"});
  quantization_.group_size = 32;
  quantization_.orders_columns = true;
  with([&] { parts_.erase("x.g_idx"); }, {"no g_idx says how"});
}

TEST_F(PackedWeightsTest, SmallGroupsAreDecodedButHaveNoBlocks) {
  quantization_.group_size = 16;
  parts_.erase("x.g_idx");
  parts_["x.qzeros"] = part("I32", {4, 1}, uint32_t{0x77777777});
  parts_["x.scales"] = part("F16", {4, 8}, uint16_t{0x3c00});
  put("x.scales", 8, uint16_t{0x4000});  // row 0, second group
  std::vector<float> weights(64);
  open().decode(0, weights);
  EXPECT_EQ(weights[15], 1.0f);
  EXPECT_EQ(weights[16], 2.0f);
  expect_complaint({"columns 0 and 16", "group_size"});
}

TEST_F(PackedWeightsTest, AnMxfp4ScaleThatIsNoNumber) {
  quantization_ = {"compressed-tensors", HfPacking::kMxfp4, 32};
  parts_ = {{"x.weight_packed", part("U8", {8, 32}, uint8_t{0x12})},
            {"x.weight_scale", part("U8", {8, 2}, uint8_t{127})}};
  std::vector<float> weights(64);
  open().decode(0, weights);
  EXPECT_EQ(weights[0], 1.0f);
  EXPECT_EQ(weights[1], 0.5f);
  put("x.weight_scale", 1, uint8_t{255});
  expect_complaint({"row 0, column 32", "no number"});
}

TEST(HfQuantizationTest, WhatIsNotUnpackedIsRefusedByName) {
  const auto complaint = [](const char* text) {
    try {
      read_hf_quantization("folder", {{"quantization_config", Json::parse(text)}});
      return std::string("none");
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  const auto group = [](const std::string& weights, const std::string& more = "") {
    return R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups":
        {"group_0": {"weights": {)" +
           weights + "}" + more + "}}}";
  };
  const std::pair<std::string, std::string> cases[] = {
      {R"({"quant_method": "bitsandbytes"})", "quantized by bitsandbytes"},
      {R"({"quant_method": "hqq"})", "quantized by hqq"},
      {R"({"quant_method": "fp8", "weight_block_size": [128, 128]})", "quantized by fp8"},
      {R"({})", "a method without a name"},
      {R"({"quant_method": "gptq", "bits": 8, "group_size": 128})", "codes of 8 bits"},
      {R"({"quant_method": "gptq", "bits": 3, "group_size": 128})", "codes of 3 bits"},
      {R"({"quant_method": "gptq", "bits": 4, "group_size": 0})", "'group_size' must be"},
      {R"({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"})", "'marlin'"},
      {R"({"quant_method": "awq", "bits": 4, "version": "gemv"})", "'version': 'gemv'"},
      {R"({"quant_method": "awq", "bits": 4, "backend": "llm-awq"})", "'llm-awq'"},
      {group(R"("num_bits": 8)"), "group_0': codes of 8 bits"},
      {group(R"("num_bits": 4, "type": "float")"), "'type': 'float'"},
      {group(R"("num_bits": 4, "strategy": "tensor")"), "'strategy': 'tensor'"},
      {group(R"("num_bits": 4)", R"(, "format": "nvfp4-pack-quantized")"), "nvfp4-pack-quantized"},
      {group(R"("num_bits": 4)", R"(, "input_activations": {"num_bits": 8})"),
       "'input_activations'"},
      {R"({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups":
           {"group_0": {"weights": {"num_bits": 8}}}})",
       "float-quantized"},
      {R"({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}})",
       "'transform_config'"},
  };
  for (const auto& [text, wanted] : cases) {
    const std::string said = complaint(text.c_str());
    EXPECT_NE(said.find(wanted), std::string::npos) << text << '\n' << said;
    EXPECT_EQ(said.find("folder/config.json: key 'quantization_config'"), 0u) << said;
  }
}

}  // namespace
}  // namespace nibble
