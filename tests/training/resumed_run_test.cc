// A run that was stopped, killed or damaged is, gone on with, the run that never stopped.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/training/stopper.h"
#include "tests/training/trainer_test.h"
#include "training/checkpoint.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

/// Keeps the first checkpoint that a run makes, which a later one replaces: what a killed run would
/// leave.
class CheckpointKeeper {
 public:
  CheckpointKeeper(fs::path from, fs::path to)
      : thread_([this, from = std::move(from), to = std::move(to)] {
          std::error_code failed;
          while (!done_) {
            fs::create_hard_link(from, to, failed);
            if (!failed) return;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
          }
        }) {}
  ~CheckpointKeeper() {
    done_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

bool same(const torch::Tensor& a, const torch::Tensor& b) {
  return a.defined() ? at::equal(a, b) : !b.defined();
}

class ResumedRunTest : public TrainerTest {
 protected:
  void expect_the_run_that_never_stopped();
};

void ResumedRunTest::expect_the_run_that_never_stopped() {
  options_.max_tokens = 256 * 30;
  options_.checkpoint_every = 16;
  const fs::path whole = folder_ / "whole", stopped = folder_ / "stopped";
  fs::create_directories(stopped / "checkpoints");
  {
    const CheckpointKeeper keeper(whole / "checkpoints" / "last.safetensors",
                                  stopped / "checkpoints" / "last.safetensors");
    train("whole");
  }
  // The killed run had gone on to step 19 when it died.
  std::ofstream metrics(stopped / "metrics.jsonl");
  const std::vector<std::string> written = lines_of(whole / "metrics.jsonl");
  for (size_t i = 0; i < 20; ++i) metrics << written[i] << "\n";
  metrics.close();

  const TrainResult resumed = train("stopped", /*resume=*/true);
  EXPECT_EQ(resumed.metrics.front().step, 17);
  EXPECT_EQ(resumed.steps, 30);
  const Checkpoint a = load_checkpoint((whole / "checkpoints" / "last.safetensors").string()),
                   b = load_checkpoint(resumed.checkpoint);
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    const TrainedTensor &one = a.tensors[i], &two = b.tensors[i];
    EXPECT_EQ(one.materialized_hash, two.materialized_hash) << one.name;
    EXPECT_TRUE(same(one.weights, two.weights)) << one.name;
    EXPECT_TRUE(same(one.blocks, two.blocks)) << one.name;
    EXPECT_TRUE(same(one.scale_ratios, two.scale_ratios)) << one.name;
  }
  const std::vector<std::string> again = lines_of(stopped / "metrics.jsonl");
  ASSERT_EQ(again.size(), written.size());
  for (size_t i = 0; i < again.size(); ++i) {
    const auto one = nlohmann::json::parse(written[i]), two = nlohmann::json::parse(again[i]);
    EXPECT_EQ(one["step"], two["step"]);
    EXPECT_EQ(one.value("loss", 0.0), two.value("loss", 0.0)) << "step " << one["step"];
  }
}

TEST_F(ResumedRunTest, HasTheSameBitsWhereScalesAloneTrain) {
  options_.quant.weights = "scales";
  expect_the_run_that_never_stopped();
}

TEST_F(ResumedRunTest, HasTheSameBitsWhereFactorsOfLowRankTrain) {
  options_.quant.weights = "lora";
  expect_the_run_that_never_stopped();
}

TEST_F(ResumedRunTest, HasTheSameBitsWhereRoundingTrains) {
  options_.quant.weights = "rounding";
  expect_the_run_that_never_stopped();
}

TEST_F(ResumedRunTest, HasTheSameBitsAfterABlockwiseStage) {
  options_.blockwise.tokens = 1024;
  options_.blockwise.batch_tokens = 128;
  expect_the_run_that_never_stopped();
}

TEST_F(ResumedRunTest, HasTheSameBits) { expect_the_run_that_never_stopped(); }

// From the second epoch on the teacher's states are those of the first, but for the resumed run,
// which asks the teacher anew.
TEST_F(ResumedRunTest, HasTheSameBitsWhereTheTeachersStatesAreKept) {
  options_.micro_batch_tokens = options_.data.sequence_length;
  options_.data.max_bytes = 8000;
  for (const char* dtype : {"float32", "bfloat16"}) {
    options_.dtype = dtype;
    expect_the_run_that_never_stopped();
    fs::remove_all(folder_ / "whole");
    fs::remove_all(folder_ / "stopped");
  }
}

// Asked anew, as the resumed run has a folder of its own, and from the file of the run that never
// stopped.
TEST_F(ResumedRunTest, HasTheSameBitsWhereTheTeacherIsAskedOnce) {
  options_.loss.teacher_top_k = 16;
  options_.data.max_bytes = 8000;  // epochs come again
  for (const char* file : {"", "shared.safetensors"}) {
    if (*file) options_.loss.teacher_cache = (folder_ / file).string();
    expect_the_run_that_never_stopped();
    EXPECT_TRUE(fs::exists(*file ? folder_ / file : folder_ / "stopped/teacher_cache.safetensors"));
    fs::remove_all(folder_ / "whole");
    fs::remove_all(folder_ / "stopped");
  }
}

class StoppedRunTest : public TrainerTest {
 protected:
  void SetUp() override {
    TrainerTest::SetUp();
    if (IsSkipped()) return;
    options_.max_tokens = 256 * 60;  // far more than are taken before the signal comes
    options_.evaluate_every = 4;
    options_.checkpoint_every = 3;
  }
  fs::path file(const std::string& run, const std::string& checkpoint) const {
    return folder_ / run / "checkpoints" / (checkpoint + ".safetensors");
  }
  bool has(const std::string& run, const std::string& checkpoint) const {
    return fs::exists(file(run, checkpoint));
  }
  Checkpoint load(const std::string& run, const std::string& checkpoint) const {
    return load_checkpoint(file(run, checkpoint).string());
  }
  /// Stops when `steps` or a few more are taken.
  TrainResult train_until_stopped(const std::string& run, int64_t steps,
                                  bool resume = false) const {
    const Stopper stopper(folder_ / run / "metrics.jsonl", static_cast<size_t>(1 + steps));
    const TrainResult result = train(run, resume);
    EXPECT_FALSE(result.complete);
    EXPECT_TRUE(result.stopped);
    return result;
  }
  void damage(const std::string& run, const std::string& checkpoint) const {
    std::fstream bytes(file(run, checkpoint), std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekg(100'000);
    const int byte = bytes.get();
    bytes.seekp(100'000);
    bytes.put(static_cast<char>(byte ^ 1));
  }
  void expect_same_end(const std::string& one, const std::string& two) const {
    for (const char* name : {"last", "best"}) {
      const Checkpoint a = load(one, name), b = load(two, name);
      EXPECT_EQ(a.step, b.step);
      EXPECT_EQ(a.best_step, b.best_step);
      EXPECT_EQ(a.held_out_loss, b.held_out_loss);
      ASSERT_EQ(a.tensors.size(), b.tensors.size());
      for (size_t i = 0; i < a.tensors.size(); ++i) {
        EXPECT_EQ(a.tensors[i].materialized_hash, b.tensors[i].materialized_hash) << name;
        EXPECT_TRUE(at::equal(a.tensors[i].weights, b.tensors[i].weights)) << name;
      }
      EXPECT_FALSE(has(two, "previous"));
    }
  }
};

TEST_F(StoppedRunTest, ASignalCheckpointsAndTheRunGoesOn) {
  const TrainResult stopped = train_until_stopped("stopped", 7);
  EXPECT_GE(stopped.steps, 7);
  EXPECT_EQ(load("stopped", "last").step, stopped.steps);
  EXPECT_LT(load("stopped", "previous").step, stopped.steps);
  const TrainResult resumed = train("stopped", /*resume=*/true);
  EXPECT_TRUE(resumed.complete);
  EXPECT_FALSE(resumed.stopped);
  EXPECT_EQ(resumed.metrics.front().step, stopped.steps + 1);
  train("whole");
  expect_same_end("whole", "stopped");
  const std::vector<StepMetrics> all = read_metrics((folder_ / "stopped").string()),
                                 wanted = read_metrics((folder_ / "whole").string());
  ASSERT_EQ(all.size(), wanted.size());
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].step, wanted[i].step);
    EXPECT_EQ(all[i].loss, wanted[i].loss);
    EXPECT_EQ(all[i].held_out_loss, wanted[i].held_out_loss);
  }
}

TEST_F(StoppedRunTest, TheCheckpointBeforeADamagedOneIsUsed) {
  const TrainResult stopped = train_until_stopped("stopped", 7);
  const int64_t before = load("stopped", "previous").step;
  damage("stopped", "last");
  EXPECT_THROW(load("stopped", "last"), Error);
  testing::internal::CaptureStderr();
  const TrainResult resumed = train("stopped", /*resume=*/true);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("last.safetensors: damaged"), std::string::npos) << said;
  EXPECT_NE(said.find("going on from the one before it"), std::string::npos) << said;
  EXPECT_EQ(resumed.metrics.front().step, before + 1);
  EXPECT_LT(before, stopped.steps);
  train("whole");
  expect_same_end("whole", "stopped");
}

TEST_F(StoppedRunTest, AGoodCheckpointOutlivesADamagedOne) {
  const TrainResult first = train_until_stopped("stopped", 7);
  damage("stopped", "last");
  const TrainResult second = train_until_stopped("stopped", first.steps + 1, /*resume=*/true);
  EXPECT_EQ(load("stopped", "last").step, second.steps);
  EXPECT_LT(load("stopped", "previous").step, second.steps);
}

TEST_F(StoppedRunTest, WhatCannotBeGoneOnWithIsNamed) {
  train_until_stopped("stopped", 7);
  const int64_t before = load("stopped", "previous").step;
  damage("stopped", "last");
  options_.checkpoint_every = 0;
  EXPECT_NE(error_of([&] { train("stopped", true); }, 1).find("other options"), std::string::npos);
  EXPECT_EQ(load("stopped", "previous").step, before);
  options_.checkpoint_every = 3;
  damage("stopped", "previous");
  EXPECT_NE(error_of([&] { train("stopped", true); }, 1).find("previous.safetensors: damaged"),
            std::string::npos);
  fs::remove(file("stopped", "previous"));
  EXPECT_NE(error_of([&] { train("stopped", true); }, 1).find("there is no checkpoint before it"),
            std::string::npos);
}

TEST_F(StoppedRunTest, AMissingLastIsTheOneBefore) {
  train_until_stopped("stopped", 7);
  const int64_t before = load("stopped", "previous").step;
  fs::remove(file("stopped", "last"));
  const TrainResult resumed = train("stopped", /*resume=*/true);
  EXPECT_EQ(resumed.metrics.front().step, before + 1);
}

TEST_F(StoppedRunTest, ADamagedBestIsFoundAnew) {
  const TrainResult stopped = train_until_stopped("stopped", 7);
  damage("stopped", "best");
  const TrainResult resumed = train("stopped", /*resume=*/true);
  EXPECT_GT(resumed.best_step, stopped.steps);
  EXPECT_EQ(load("stopped", "best").step, resumed.best_step);
}

TEST_F(StoppedRunTest, AnotherRunInTheFolderReplacesTheCheckpoints) {
  train_until_stopped("run", 7);
  options_.seed = 2;
  options_.data.held_out = 0;  // so that it has no best of its own
  options_.max_tokens = 256 * 10;
  testing::internal::CaptureStderr();
  train("run");
  EXPECT_NE(testing::internal::GetCapturedStderr().find("stopped before its end"),
            std::string::npos);
  EXPECT_EQ(load("run", "last").step, 10);
  testing::internal::CaptureStderr();
  train("run");  // that one was over
  EXPECT_EQ(testing::internal::GetCapturedStderr().find("stopped before its end"),
            std::string::npos);
  EXPECT_FALSE(has("run", "previous"));
  EXPECT_FALSE(has("run", "best"));
}

TEST_F(TrainerTest, AFinishedRunIsLeftAsItIs) {
  const TrainResult whole = train("run");
  const auto written = fs::last_write_time(whole.checkpoint);
  // As if killed after its last checkpoint, before it removed the one before.
  const fs::path previous = folder_ / "run" / "checkpoints" / "previous.safetensors";
  fs::copy_file(whole.checkpoint, previous);
  const TrainResult again = train("run", /*resume=*/true);
  EXPECT_FALSE(fs::exists(previous));
  EXPECT_TRUE(again.complete);
  EXPECT_TRUE(again.metrics.empty());
  EXPECT_EQ(again.steps, whole.steps);
  EXPECT_EQ(again.tokens, whole.tokens);
  EXPECT_EQ(again.best_step, whole.best_step);
  EXPECT_EQ(again.best_checkpoint, whole.best_checkpoint);
  EXPECT_EQ(fs::last_write_time(whole.checkpoint), written);
}

TEST_F(TrainerTest, AnotherRunIsNotResumed) {
  train("run");
  options_.optimizer.learning_rate *= 2;
  EXPECT_NE(error_of([&] { train("run", true); }, 1).find("other options"), std::string::npos);
}

}  // namespace
}  // namespace nibble
