#include "model/hf/convert.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "io/gguf.h"
#include "model/tokenizer.h"
#include "quant/format/rows.h"
#include "tests/model/hf/tiny_folder.h"

namespace nibble {
namespace {

class ConvertTest : public testing::Test {
 protected:
  ConvertTest() { Progress::set_quiet(true); }

  GgufFile convert(const HfConversion& options = {}) {
    tiny_.write();
    convert_hf(tiny_.path(), out_, options);
    return GgufFile::open(out_);
  }
  /// What converting says, or "" when it succeeds; then nothing may have been left.
  std::string complaint() {
    tiny_.write();
    return complaint_of_files();
  }
  std::string complaint_of_files() {
    try {
      convert_hf(tiny_.path(), out_, {});
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(result_.num_files(), 0u);
      return error.what();
    }
  }
  void expect_complaint(const std::vector<std::string>& parts) {
    const std::string text = complaint();
    EXPECT_EQ(text.find(tiny_.path()), 0u) << text;
    for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << text;
  }
  static std::vector<float> weights(const GgufTensor& tensor) {
    std::vector<float> values(static_cast<size_t>(tensor.num_weights()));
    decode_tensor(tensor.type, tensor.data, values);
    return values;
  }

  TinyFolder tiny_;
  TemporaryFolder result_;
  std::string out_ = result_.file("out.gguf");
};

TEST_F(ConvertTest, PutsTheRowsOfEachHeadInGgufsOrder) {
  const GgufFile file = convert();
  const std::vector<float> stored = TinyFolder::values({8, 8});
  const std::vector<float> query = weights(file.tensor("blk.0.attn_q.weight"));
  // A head of 4: rows 0 1 2 3 are turned as (0, 2) and (1, 3), and come to stand so.
  const size_t order[] = {0, 2, 1, 3, 4, 6, 5, 7};
  for (size_t row = 0; row < 8; ++row)
    for (size_t column = 0; column < 8; ++column)
      EXPECT_EQ(query[row * 8 + column], stored[order[row] * 8 + column]) << row;
  EXPECT_EQ(weights(file.tensor("blk.0.attn_v.weight")), TinyFolder::values({4, 8}));
  EXPECT_EQ(weights(file.tensor("blk.0.ffn_down.weight")), TinyFolder::values({8, 6}));
  EXPECT_EQ(file.tensor("blk.0.ffn_down.weight").shape, (std::vector<int64_t>{6, 8}));
}

TEST_F(ConvertTest, BiasesOfQueriesAreReorderedToo) {
  tiny_.config["attention_bias"] = true;
  for (const char* name : {"q", "o"})
    tiny_.shapes[std::string("model.layers.0.self_attn.") + name + "_proj.bias"] = {8};
  for (const char* name : {"k", "v"})
    tiny_.shapes[std::string("model.layers.0.self_attn.") + name + "_proj.bias"] = {4};
  const GgufFile file = convert();
  const std::vector<float> wanted = {1, 3, 2, 4, 5, 7, 6, 8};
  std::vector<float> bias = weights(file.tensor("blk.0.attn_q.bias"));
  for (float& value : bias) value *= 64;
  EXPECT_EQ(bias, wanted);
  EXPECT_EQ(weights(file.tensor("blk.0.attn_output.bias")), TinyFolder::values({8}));
}

TEST_F(ConvertTest, Qwen2KeepsTheRowsWhereTheyAre) {
  tiny_.config["architectures"] = {"Qwen2ForCausalLM"};
  for (const char* name : {"k", "v"})
    tiny_.shapes[std::string("model.layers.0.self_attn.") + name + "_proj.bias"] = {4};
  expect_complaint({"tensor 'model.layers.0.self_attn.q_proj.bias' is missing"});
  tiny_.shapes["model.layers.0.self_attn.q_proj.bias"] = {8};
  const GgufFile file = convert();
  EXPECT_EQ(file.metadata().get_string("general.architecture"), "qwen2");
  EXPECT_EQ(weights(file.tensor("blk.0.attn_q.weight")), TinyFolder::values({8, 8}));
  EXPECT_EQ(weights(file.tensor("blk.0.attn_q.bias")), TinyFolder::values({8}));
}

TEST_F(ConvertTest, MatricesKeepTheirTypeAndVectorsAreFloat32) {
  tiny_.dtype = "BF16";
  for (const auto& [wanted, type] : std::vector<std::pair<std::optional<GgmlType>, GgmlType>>{
           {std::nullopt, GgmlType::kBF16},
           {GgmlType::kF16, GgmlType::kF16},
           {GgmlType::kF32, GgmlType::kF32}}) {
    const GgufFile file = convert({wanted, ""});
    EXPECT_EQ(file.tensor("token_embd.weight").type, type);
    EXPECT_EQ(file.tensor("blk.0.attn_norm.weight").type, GgmlType::kF32);
    EXPECT_EQ(weights(file.tensor("token_embd.weight")), TinyFolder::values({7, 8}));
    const int64_t file_type = type == GgmlType::kF32 ? 0 : type == GgmlType::kF16 ? 1 : 32;
    EXPECT_EQ(file.metadata().get_int("general.file_type"), file_type);
  }
}

TEST_F(ConvertTest, ShardsAndOneFileGiveTheSameTensors) {
  convert();
  const std::string whole = read_file(out_);
  std::filesystem::remove(tiny_.file("model.safetensors"));
  tiny_.sharded = true;
  const GgufFile file = convert();
  EXPECT_EQ(read_file(out_).size(), whole.size());
  EXPECT_EQ(weights(file.tensor("token_embd.weight")), TinyFolder::values({7, 8}));
  EXPECT_EQ(weights(file.tensor("blk.0.ffn_up.weight")), TinyFolder::values({6, 8}));
}

TEST_F(ConvertTest, CarriesTheTokenizer) {
  const GgufFile file = convert();
  const GgufMetadata& metadata = file.metadata();
  EXPECT_EQ(metadata.get_strings("tokenizer.ggml.tokens"),
            (std::vector<std::string>{"a", "b", "ab", "c", "abc", "<|end|>", "[PAD6]"}));
  EXPECT_EQ(metadata.get_ints("tokenizer.ggml.token_type"),
            (std::vector<int64_t>{1, 1, 1, 1, 1, 3, 5}));
  EXPECT_EQ(metadata.get_string("tokenizer.ggml.pre"), "gpt-2");
  EXPECT_EQ(metadata.get_int("tokenizer.ggml.eos_token_id"), 5);
  EXPECT_EQ(Tokenizer::from_metadata(metadata)->encode("abcab<|end|>", false, true),
            (std::vector<int32_t>{4, 2, 5}));
}

TEST_F(ConvertTest, SequencesOfStepsAreTheirSteps) {
  const TinyFolder::Json pre = tiny_.tokenizer["pre_tokenizer"];
  for (const TinyFolder::Json& nfc :
       {TinyFolder::Json{{"type", "NFC"}},
        TinyFolder::Json{{"type", "Sequence"}, {"normalizers", TinyFolder::Json::array()}}}) {
    tiny_.tokenizer["normalizer"] = {{"type", "Sequence"}, {"normalizers", {nfc}}};
    tiny_.tokenizer["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {pre}}};
    EXPECT_EQ(convert().metadata().get_string("tokenizer.ggml.pre"), "gpt-2");
  }
}

TEST_F(ConvertTest, AddedTokensThatTakeSpacesAreNamed) {
  tiny_.tokenizer["added_tokens"][0]["rstrip"] = true;
  testing::internal::CaptureStderr();
  convert();
  EXPECT_NE(testing::internal::GetCapturedStderr().find(
                "1 added tokens ('<|end|>', ...) take spaces beside them in transformers"),
            std::string::npos);
}

TEST_F(ConvertTest, MergesGiveTheScoresOfASentencepieceTokenizer) {
  tiny_.tokenizer["model"]["byte_fallback"] = true;
  tiny_.tokenizer["model"]["unk_token"] = "c";
  tiny_.tokenizer["pre_tokenizer"] = nullptr;
  const GgufFile file = convert();
  const auto scores = file.metadata().get_floats("tokenizer.ggml.scores");
  EXPECT_EQ(file.metadata().get_string("tokenizer.ggml.model"), "llama");
  EXPECT_GT(scores[2], scores[4]) << "ab is joined before abc";
  EXPECT_GT(scores[4], scores[0]) << "nothing is joined to a";
  EXPECT_EQ(file.metadata().get_ints("tokenizer.ggml.token_type")[3], 2) << "unknown";
}

TEST_F(ConvertTest, MistakesInTheCheckpointAreNamed) {
  tiny_.shapes.erase("model.layers.0.mlp.up_proj.weight");
  expect_complaint({"tensor 'model.layers.0.mlp.up_proj.weight' is missing"});
  tiny_.shapes["model.layers.0.mlp.up_proj.weight"] = {6, 9};
  expect_complaint({"model.safetensors", "up_proj", "[6, 9]", "[6, 8]"});
  tiny_.shapes["model.layers.0.mlp.up_proj.weight"] = {6, 8};
  tiny_.shapes["model.layers.1.mlp.up_proj.weight"] = {6, 8};
  expect_complaint({"model.layers.1.mlp.up_proj.weight", "no such tensor"});
  tiny_.shapes.erase("model.layers.1.mlp.up_proj.weight");
  tiny_.shapes.erase("lm_head.weight");
  expect_complaint({"'lm_head.weight' is missing"});
  tiny_.config["tie_word_embeddings"] = true;
  EXPECT_EQ(complaint(), "");
}

TEST_F(ConvertTest, TheIndexIsChecked) {
  tiny_.sharded = true;
  tiny_.write();
  const std::string path = tiny_.file("model.safetensors.index.json");
  const auto with = [&](const std::string& tensor, const std::string& file) {
    auto index = nlohmann::json::parse(read_file(path));
    index["weight_map"][tensor] = file;
    return index.dump();
  };
  const std::string good = read_file(path);
  write_file(path, with("lm_head.weight", "../model-00002-of-00002.safetensors"));
  EXPECT_NE(complaint_of_files().find("no name of a safetensors file in this folder"),
            std::string::npos);
  write_file(path, good);
  write_file(path, with("lm_head.weight", "model-00001-of-00002.safetensors"));
  EXPECT_NE(complaint_of_files().find("'lm_head.weight' is not in"), std::string::npos);
  write_file(path, good);
  write_file(path, with("more.weight", "model-00003-of-00003.safetensors"));
  EXPECT_NE(complaint_of_files().find("model-00003-of-00003.safetensors"), std::string::npos);
  write_file(path, R"({"weight_map": {"a": 1}})");
  EXPECT_NE(complaint_of_files().find("'weight_map'"), std::string::npos);
  write_file(path, good);
  EXPECT_EQ(complaint_of_files(), "");
}

// What comes out of a changed file is a model or an Error, no other exception and no crash.
TEST_F(ConvertTest, ChangedFilesGiveErrorsOnly) {
  tiny_.write();
  std::mt19937 random(5);
  int refused = 0;
  for (const char* name : {"config.json", "tokenizer.json", "tokenizer_config.json"}) {
    const std::string path = tiny_.file(name), whole = read_file(path);
    for (int round = 0; round < 150; ++round) {
      std::string bytes = whole;
      constexpr char kOften[] = "0\"{[-9,:e";
      for (int change = 0; change < 2; ++change)
        bytes[random() % bytes.size()] =
            random() % 2 ? kOften[random() % (sizeof kOften - 1)] : static_cast<char>(random());
      std::ofstream(path, std::ios::binary) << bytes;
      std::filesystem::remove(out_);
      refused += complaint_of_files().empty() ? 0 : 1;
    }
    std::ofstream(path, std::ios::binary) << whole;
  }
  EXPECT_GT(refused, 200);
  EXPECT_EQ(complaint_of_files(), "");
}

TEST_F(ConvertTest, NothingIsLeftWhereAWeightCannotBeStored) {
  tiny_.write();
  // 2^17, in bfloat16 and float32 a number, overflows float16.
  const std::vector<float> large(56, 131072.0f);
  auto entries = std::vector<SafetensorsEntry>();
  const SafetensorsFile stored = SafetensorsFile::open(tiny_.file("model.safetensors"));
  for (SafetensorsEntry entry : stored.entries()) {
    if (entry.name == "lm_head.weight") entry.data = std::as_bytes(std::span(large));
    entries.push_back(entry);
  }
  write_safetensors(tiny_.file("model.safetensors"), entries, {});
  try {
    convert_hf(tiny_.path(), out_, {GgmlType::kF16, ""});
    FAIL() << "was converted";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("lm_head.weight"), std::string::npos) << text;
    EXPECT_NE(text.find("overflows F16"), std::string::npos) << text;
  }
  EXPECT_EQ(result_.num_files(), 0u);
}

TEST_F(ConvertTest, OtherFoldersAreNamed) {
  try {
    convert_hf(result_.path(), out_, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("has no config.json"), std::string::npos);
  }
  tiny_.write();
  try {
    GgufFile::open(tiny_.path());
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("nibble convert"), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble
