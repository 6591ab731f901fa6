// The whole loop on stories260K (a llama of 260 thousand parameters): the loss goes down, two runs
// of one seed leave the same bytes, and what cannot work is said in one line.
#include "training/trainer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/training/trainer_test.h"
#include "training/checkpoint.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

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
    options_.teacher = other ? source_->path() : "";
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
