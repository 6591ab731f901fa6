// Runs of a few steps on stories260K (a llama of 260 thousand parameters) and made-up sentences.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/progress.h"
#include "training/trainer.h"

namespace nibble {

/// A SetUp() that goes on from its own must return where IsSkipped().
class TrainerTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string model = std::string(NIBBLE_SOURCE_DIR) +
                              "/../shared/data/models/stories260K/stories260K-f32.v3.gguf";
    if (!std::filesystem::exists(model)) GTEST_SKIP() << "no " << model;
    Progress::set_quiet(true);
    folder_ = std::filesystem::path(testing::TempDir()) /
              ("nibble_trainer_" +
               std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    source_ = std::make_unique<GgufFile>(GgufFile::open(model));
    PlanOptions plan;
    plan.type_name = "Q4_0";
    plan_ = make_plan(*source_, plan);
    write_text();
    options_.data.files = {(folder_ / "text.txt").string()};
    options_.data.sequence_length = 64;
    options_.data.held_out = 0.1;
    options_.batch_tokens = 256;
    options_.micro_batch_tokens = 128;
    options_.max_tokens = 256 * 20;
    options_.evaluate_every = 10;
    options_.checkpoint_every = 10;
    options_.optimizer.learning_rate = 1e-3;
    options_.optimizer.scale_learning_rate = 3e-3;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  /// Children's sentences, all different enough to be worth learning from.
  void write_text() const {
    const char* names[] = {"Lily", "Tom", "Mia", "Ben", "Sue", "Max"};
    const char* things[] = {"ball", "dog", "tree", "boat", "cake", "bird", "hat"};
    const char* places[] = {"park", "house", "garden", "river", "school"};
    std::ofstream out(folder_ / "text.txt");
    for (int i = 0; i < 400; ++i)
      out << "Once upon a time, " << names[i % 6] << " saw a big " << things[i % 7] << " in the "
          << places[i % 5] << ". " << names[(i * 5 + 1) % 6] << " wanted to play with the "
          << things[(i * 3) % 7] << " too, so they were happy.\n";
  }
  TrainResult train(const std::string& run, bool resume = false) const {
    return nibble::train(*source_, plan_, options_, (folder_ / run).string(), resume);
  }
  static std::string error_of(const std::function<void()>& body, int exit_code) {
    try {
      body();
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), exit_code) << error.what();
      return error.what();
    }
    ADD_FAILURE() << "no error";
    return "";
  }

  std::filesystem::path folder_;
  std::unique_ptr<GgufFile> source_;
  Plan plan_;
  TrainOptions options_;
};

}  // namespace nibble
