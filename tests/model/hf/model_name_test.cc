#include "model/hf/model_name.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace nibble {
namespace {

struct Case {
  std::string id;
  int64_t num_parameters;
  std::string full, organization, basename, finetune, version, size_label;
};

// What gguf-py's Metadata.get_model_id_components() gives; tests/interop/test_convert.py asks it.
const std::vector<Case> kCases = {
    {"Mistral-7B-Instruct-v0.2", 7'241'732'096, "Mistral-7B-Instruct-v0.2", "", "Mistral",
     "Instruct", "v0.2", "7B"},
    {"Qwen/Qwen2.5-7B-Instruct", 7'615'616'512, "Qwen2.5-7B-Instruct", "Qwen", "Qwen2.5",
     "Instruct", "", "7B"},
    {"SmolLM2-135M", 134'515'008, "SmolLM2-135M", "", "SmolLM2", "", "", "135M"},
    {"model", 1'000'000, "model", "", "", "", "", ""},
    {"Phi-3-mini-128k-instruct", 3'800'000'000, "Phi-3-mini-128k-instruct", "", "Phi-3",
     "128k-instruct", "", "mini"},
    {"bloom-7b1", 7'069'000'000, "bloom-7b1", "", "bloom", "", "", "7.1B"},
    {"A Model for People", 10, "A Model for People", "", "", "", "", ""},
};

TEST(ModelName, IsSplitAsTheConverterDoes) {
  for (const Case& each : kCases) {
    const ModelName name = split_model_name(each.id, each.num_parameters);
    EXPECT_EQ(name.full, each.full) << each.id;
    EXPECT_EQ(name.organization, each.organization) << each.id;
    EXPECT_EQ(name.basename, each.basename) << each.id;
    EXPECT_EQ(name.finetune, each.finetune) << each.id;
    EXPECT_EQ(name.version, each.version) << each.id;
    EXPECT_EQ(name.size_label, each.size_label) << each.id;
  }
}

TEST(ModelName, SizesHaveTwoDigits) {
  EXPECT_EQ(size_label(134'515'008), "135M");
  EXPECT_EQ(size_label(7'241'732'096), "7.2B");
  EXPECT_EQ(size_label(9'960'000), "10M");  // rounds to two digits
  EXPECT_EQ(size_label(268'000), "268K");
  EXPECT_EQ(size_label(1'200), "1.2K");
  EXPECT_EQ(size_label(400), "0.40K");
  EXPECT_EQ(size_label(2'300'000'000'000), "2.3T");
}

TEST(ModelName, TheFolderFillsWhatTheConfigurationLeavesOut) {
  const GgufMetadata named =
      model_name_metadata("org/base-model-7B", "folder-v2", 7'000'000'000, "8x1B");
  EXPECT_EQ(named.get_string("general.name"), "Base Model 7B");
  EXPECT_EQ(named.get_string("general.organization"), "Org");
  EXPECT_EQ(named.get_string("general.size_label"), "7B");
  EXPECT_EQ(named.get_string("general.version"), "v2");
  // A path of somebody's machine names nothing.
  const GgufMetadata path = model_name_metadata("/home/user/x", "tiny", 1'500'000, "2x1M");
  EXPECT_EQ(path.get_string("general.name"), "Tiny");
  EXPECT_EQ(path.get_string("general.size_label"), "2x1M");
  EXPECT_FALSE(path.contains("general.organization"));
}

}  // namespace
}  // namespace nibble
