// The whole loop on stories260K (a llama of 260 thousand parameters): the loss goes down, two runs
// of one seed leave the same bytes, a resumed run is the run that never stopped, and what cannot
// work is said in one line.
#include "training/trainer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "tests/training/stopper.h"
#include "training/checkpoint.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

const std::string kShared = std::string(NIBBLE_SOURCE_DIR) + "/../shared/data";
const std::string kModel = kShared + "/models/stories260K/stories260K-f32.v3.gguf";

class TrainerTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(kModel)) GTEST_SKIP() << "no " << kModel;
    Progress::set_quiet(true);
    folder_ = fs::path(testing::TempDir()) /
              ("nibble_trainer_" +
               std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    source_ = std::make_unique<GgufFile>(GgufFile::open(kModel));
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
  void TearDown() override { fs::remove_all(folder_); }

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

  fs::path folder_;
  std::unique_ptr<GgufFile> source_;
  Plan plan_;
  TrainOptions options_;
};

TEST_F(TrainerTest, LossGoesDownAndMetricsSaySo) {
  const TrainResult result = train("run");
  EXPECT_EQ(result.steps, 20);
  EXPECT_EQ(result.tokens, 20 * 256);
  std::ifstream lines(folder_ / "run" / "metrics.jsonl");
  std::vector<nlohmann::json> rows;
  for (std::string line; std::getline(lines, line);) rows.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(rows.size(), 21u);  // the start and each step
  EXPECT_EQ(rows.front()["step"], 0);
  EXPECT_EQ(rows.back()["step"], 20);
  EXPECT_EQ(rows.back()["tokens"], 20 * 256);
  // Distillation from the start of search-quantized weights: halved in 20 steps when learning works
  // at all.
  const double first = rows.front()["held_out_loss"], last = rows.back()["held_out_loss"];
  EXPECT_LT(last, 0.7 * first);
  EXPECT_GT(first, 0);
  EXPECT_TRUE(fs::exists(result.best_checkpoint));
  EXPECT_TRUE(fs::exists(result.checkpoint));
}

TEST_F(TrainerTest, CheckpointMaterializesToTheHashItNames) {
  const TrainResult result = train("run");
  for (const std::string& path : {result.checkpoint, result.best_checkpoint}) {
    const Checkpoint checkpoint = load_checkpoint(path);
    EXPECT_TRUE(checkpoint.moments.empty());
    EXPECT_EQ(checkpoint.plan.to_json(), plan_.to_json());
    int quantized = 0;
    for (const TrainedTensor& tensor : checkpoint.tensors) {
      EXPECT_EQ(tensor.type, plan_.find(tensor.name)->target) << tensor.name;
      torch::Tensor values = tensor.weights.clone();
      if (tensor.type != GgmlType::kF32) {
        ++quantized;
        restore_quantizer(tensor).materialize(values);
      }
      EXPECT_EQ(content_hash(values), tensor.materialized_hash) << tensor.name;
    }
    EXPECT_GT(quantized, 0);
  }
}

/// Start and end of a tensor's masters.
torch::Tensor moved(const TrainedTensor& from, const TrainedTensor& to) {
  return to.weights - from.weights;
}

// With scales that stay, masters move by a product of rank 4, and what is not quantized not at all.
TEST_F(TrainerTest, LowRankFactorsAreAllThatTrains) {
  options_.quant.weights = "lora";
  options_.quant.lora_rank = 4;
  options_.quant.scales = "frozen";
  options_.optimizer.learning_rate = 1e-2;
  options_.checkpoint_every = 0;
  const TrainResult end = train("end");
  EXPECT_LT(end.metrics.back().held_out_loss, 0.9 * end.metrics.front().held_out_loss);
  options_.optimizer.learning_rate = 0;
  const TrainResult start = train("start");
  const Checkpoint before = load_checkpoint(start.checkpoint),
                   after = load_checkpoint(end.checkpoint);
  for (size_t i = 0; i < before.tensors.size(); ++i) {
    const TrainedTensor& tensor = after.tensors[i];
    const torch::Tensor change = moved(before.tensors[i], tensor);
    EXPECT_TRUE(tensor.training_state.empty()) << "a file that ships has no adapter";
    if (tensor.type == GgmlType::kF32) {
      EXPECT_EQ(change.abs().max().item<float>(), 0.0f) << tensor.name;
      continue;
    }
    const torch::Tensor values = at::linalg_svdvals(change);
    EXPECT_GT(values[3].item<float>(), 1e-3 * values[0].item<float>()) << tensor.name;
    // What float32 leaves of a sum of twenty products.
    EXPECT_LT(values[4].item<float>(), 1e-4 * values[0].item<float>()) << tensor.name;
  }
}

TEST_F(TrainerTest, RoundingMovesNoMasterFurtherThanALevel) {
  options_.quant.weights = "rounding";
  options_.quant.scales = "frozen";
  options_.optimizer.learning_rate = 3e-4;
  options_.checkpoint_every = 0;
  const TrainResult end = train("end");
  EXPECT_LT(end.metrics.back().held_out_loss, 0.9 * end.metrics.front().held_out_loss);
  options_.optimizer.learning_rate = 0;
  const TrainResult start = train("start");
  const Checkpoint before = load_checkpoint(start.checkpoint),
                   after = load_checkpoint(end.checkpoint);
  bool moves = false;
  for (size_t i = 0; i < before.tensors.size(); ++i) {
    const TrainedTensor& tensor = after.tensors[i];
    const torch::Tensor change = moved(before.tensors[i], tensor).abs();
    if (!tensor.initial_scales.defined()) {  // norms, and F16 where 32 divides no row
      EXPECT_EQ(change.max().item<float>(), 0.0f) << tensor.name;
      continue;
    }
    const torch::Tensor steps = tensor.initial_scales.abs().repeat_interleave(32, 1);
    moves |= change.max().item<float>() > 0;
    // Half a step, and float32's rounding of the bound.
    EXPECT_LE((change / steps.clamp_min(1e-12)).max().item<float>(), 0.5001) << tensor.name;
  }
  EXPECT_TRUE(moves);
}

TEST_F(TrainerTest, SameSeedSameBytes) {
  const TrainResult a = train("a"), b = train("b");
  options_.seed = 2;
  const TrainResult c = train("c");
  const Checkpoint first = load_checkpoint(a.checkpoint), again = load_checkpoint(b.checkpoint),
                   other = load_checkpoint(c.checkpoint);
  bool differs = false;
  for (size_t i = 0; i < first.tensors.size(); ++i) {
    EXPECT_EQ(first.tensors[i].materialized_hash, again.tensors[i].materialized_hash);
    EXPECT_TRUE(at::equal(first.tensors[i].weights, again.tensors[i].weights));
    differs |= first.tensors[i].materialized_hash != other.tensors[i].materialized_hash;
  }
  EXPECT_TRUE(differs);
}

TEST_F(TrainerTest, AStreamedTeacherTeachesTheSameBits) {
  for (const bool other : {false, true}) {
    options_.teacher = other ? kModel : "";
    options_.stream_teacher = false;
    const TrainResult kept = train(other ? "other kept" : "kept");
    options_.stream_teacher = true;
    const TrainResult streamed = train(other ? "other streamed" : "streamed");
    const Checkpoint a = load_checkpoint(kept.checkpoint), b = load_checkpoint(streamed.checkpoint);
    for (size_t i = 0; i < a.tensors.size(); ++i)
      EXPECT_EQ(a.tensors[i].materialized_hash, b.tensors[i].materialized_hash);
    EXPECT_EQ(kept.metrics.back().held_out_loss, streamed.metrics.back().held_out_loss);
  }
}

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

// With every token among the likeliest nothing is hidden but float16's rounding.
TEST_F(TrainerTest, AllTokensOfATeacherTeachAsTheTeacherDoes) {
  options_.max_tokens = 256 * 4;
  const TrainResult whole = train("whole");
  options_.loss.teacher_top_k = 512;
  const TrainResult kept = train("kept");
  options_.loss.teacher_top_k = 2;
  const TrainResult little = train("little");
  ASSERT_EQ(whole.metrics.size(), kept.metrics.size());
  for (size_t i = 0; i < whole.metrics.size(); ++i) {
    EXPECT_NEAR(kept.metrics[i].held_out_kl, whole.metrics[i].held_out_kl, 1e-4) << i;
    EXPECT_NEAR(kept.metrics[i].loss, whole.metrics[i].loss, 1e-4) << i;
  }
  EXPECT_LT(little.metrics.front().held_out_kl, 0.8 * whole.metrics.front().held_out_kl);
  EXPECT_GT(little.metrics.front().held_out_kl, 0);
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

TEST_F(TrainerTest, EveryLossAndScaleModeTrains) {
  options_.max_tokens = 256 * 12;
  for (const char* kind : {"kl", "ce", "mix"})
    for (const char* scales : {"learned", "dynamic", "frozen"}) {
      options_.loss.kind = kind;
      options_.loss.ce_weight = 0.5;
      options_.quant.scales = scales;
      const TrainResult result = train("run");
      EXPECT_LT(result.metrics.back().held_out_loss, result.metrics.front().held_out_loss)
          << kind << ", " << scales;
    }
}

TEST_F(TrainerTest, UnquantizedFineTuning) {
  options_.quant.type = "none";
  options_.loss.kind = "ce";
  const TrainResult result = train("run");
  EXPECT_LT(result.metrics.back().held_out_loss, result.metrics.front().held_out_loss);
  for (const TrainedTensor& tensor : load_checkpoint(result.checkpoint).tensors)
    EXPECT_EQ(tensor.type, GgmlType::kF32);
}

TEST_F(TrainerTest, TimeLimitStops) {
  options_.max_tokens = 256 * 1'000'000;
  options_.max_minutes = 1.0 / 60;
  const TrainResult result = train("run");
  EXPECT_GT(result.steps, 0);
  EXPECT_LT(result.steps, 1'000'000);
  // The schedule has come to its end with the clock: a tenth of the peak leaves room for one slow
  // step.
  EXPECT_LT(result.metrics.back().learning_rate, 0.1 * options_.optimizer.learning_rate);
}

TEST_F(TrainerTest, DivergedRunNamesStepBatchAndTensor) {
  options_.optimizer.learning_rate = 1e30;
  options_.optimizer.warmup = 0;
  const std::string error = error_of([&] { train("run"); }, 1);
  EXPECT_NE(error.find("step 2, batch of sequences "), std::string::npos) << error;
  EXPECT_NE(error.find("first bad tensor: "), std::string::npos) << error;
}

TEST_F(TrainerTest, ImpossibleOptionsAreUsageErrors) {
  options_.batch_tokens = 100;
  EXPECT_NE(error_of([&] { train("run"); }, 2).find("batch_tokens is 100"), std::string::npos);
  options_.batch_tokens = 256;
  options_.micro_batch_tokens = 65;
  EXPECT_NE(error_of([&] { train("run"); }, 2).find("micro_batch_tokens"), std::string::npos);
  options_.micro_batch_tokens = 128;
  options_.max_tokens = 10;
  EXPECT_NE(error_of([&] { train("run"); }, 2).find("max_tokens"), std::string::npos);
  options_.max_tokens = 512;
  options_.quant.weights = "scales";
  options_.device.cuda = true;
  EXPECT_NE(error_of([&] { train("run"); }, 2).find("on the CPU only"), std::string::npos);
  options_.device.cuda = false;
  options_.loss.kind = "k1";
  EXPECT_NE(error_of([&] { train("run"); }, 2).find("did you mean 'kl'"), std::string::npos);
  options_.loss.kind = "kl";
  options_.data.sequence_length = 4096;
  options_.batch_tokens = options_.micro_batch_tokens = options_.max_tokens = 4096;
  EXPECT_NE(error_of([&] { train("run"); }, 2).find("context"), std::string::npos);
  EXPECT_FALSE(fs::exists(folder_ / "run" / "checkpoints" / "last.safetensors"));
}

}  // namespace
}  // namespace nibble
