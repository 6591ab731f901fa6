// What tests of training start from: stories260K and children's stories, where ../shared is there.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "base/progress.h"
#include "model/model.h"
#include "quant/mix/plan.h"
#include "training/data.h"

namespace nibble {

/// A SetUp() that goes on from its own must return where IsSkipped().
class StoriesTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kModel) || !std::filesystem::exists(kText))
      GTEST_SKIP() << "no " << kShared;
    Progress::set_quiet(true);
    source_ = std::make_unique<GgufFile>(GgufFile::open(kModel));
    teacher_ = load_model(*source_);
  }
  /// In sequences of 128 tokens.
  TextData stories(int64_t max_bytes) const {
    DataOptions data;
    data.files = {kText};
    data.sequence_length = 128;
    data.max_bytes = max_bytes;
    return TextData::load(data, *Tokenizer::from_metadata(source_->metadata()), 1);
  }
  static Plan plan_of(const GgufFile& source, const std::string& type) {
    PlanOptions plan;
    plan.type_name = type;
    return make_plan(source, plan);
  }

  std::unique_ptr<GgufFile> source_;
  std::unique_ptr<Model> teacher_;

 private:
  inline static const std::string kShared = std::string(NIBBLE_SOURCE_DIR) + "/../shared/data";
  inline static const std::string kModel = kShared + "/models/stories260K/stories260K-f32.v3.gguf";
  inline static const std::string kText = kShared + "/text/tinystories/valid_v1_nosep.txt";
};

}  // namespace nibble
