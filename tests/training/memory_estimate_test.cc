// The arithmetic of the estimate and its advice. That it is what a run takes is measured in
// tests/interop/test_memory.py.
#include "training/memory_estimate.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "base/error.h"
#include "tests/io/temporary_folder.h"
#include "tests/model/tiny_llama.h"

namespace nibble {
namespace {

class MemoryEstimateTest : public testing::Test {
 protected:
  MemoryEstimateTest() {
    tiny_.width = 64;
    tiny_.feed_forward = 128;
    tiny_.vocab = 1000;
    tiny_.layers = 8;
    tiny_.write(path_);
    file_ = std::make_unique<GgufFile>(GgufFile::open(path_));
    PlanOptions plan;
    plan.type_name = "Q4_0";
    plan_ = make_plan(*file_, plan);
    options_.data.sequence_length = 64;
    options_.batch_tokens = options_.micro_batch_tokens = 1024;
  }
  MemoryEstimate estimate() const { return estimate_memory(*file_, plan_, options_, 0); }
  std::string refusal(int64_t available) const {
    try {
      check_memory(*file_, plan_, options_, 1000, available);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  TemporaryFolder folder_;
  std::string path_ = folder_.file("tiny.gguf");
  TinyLlama tiny_;
  std::unique_ptr<GgufFile> file_;
  Plan plan_;
  TrainOptions options_;
};

TEST_F(MemoryEstimateTest, CountsEveryCopyOfTheWeights) {
  int64_t weights = 0, scales = 0;
  for (const PlanEntry& entry : plan_.entries) {
    const int64_t count = entry.shape[0] * (entry.shape.size() > 1 ? entry.shape[1] : 1);
    weights += count;
    if (entry.shape.size() > 1) scales += count / 32;
  }
  const int64_t norms = 64 * (2 * tiny_.layers + 1);
  options_.loss.kind = "ce";
  options_.quant.type = "none";
  EXPECT_EQ(estimate().weights, 4 * weights);
  EXPECT_EQ(estimate().optimizer, 8 * weights);
  options_.loss.kind = "kl";  // a teacher
  EXPECT_EQ(estimate().weights, 8 * weights);
  options_.quant.type = "Q4_0";  // masters and scales of what is quantized
  EXPECT_EQ(estimate().weights, 4 * (3 * weights - norms + 3 * scales));
  options_.quant.estimator = "lsq";  // masters do not follow
  EXPECT_EQ(estimate().weights, 4 * (3 * weights - norms + 2 * scales));
  EXPECT_EQ(estimate().optimizer, 8 * (weights + scales));
  options_.quant.scales = "dynamic";
  EXPECT_EQ(estimate().weights, 4 * (3 * weights - norms));
  EXPECT_EQ(estimate().optimizer, 8 * weights);
}

TEST_F(MemoryEstimateTest, StoredCodesHaveNoMastersMomentsOrGradients) {
  int64_t weights = 0, norms = 0, scales = 0, blocks = 0;
  for (const PlanEntry& entry : plan_.entries) {
    const int64_t count = entry.shape[0] * (entry.shape.size() > 1 ? entry.shape[1] : 1);
    weights += count;
    norms += entry.shape.size() == 1 ? count : 0;
    if (entry.shape.size() == 1) continue;
    scales += count / 32;
    blocks += entry.bytes_as(entry.target);
  }
  const MemoryEstimate full = estimate();
  options_.quant.weights = "scales";
  EXPECT_EQ(estimate().weights, 4 * (weights + norms + 2 * scales) + blocks);  // and the teacher's
  EXPECT_EQ(estimate().optimizer, 8 * scales);
  EXPECT_EQ(estimate().activations, full.activations);
  EXPECT_LE(estimate().gradients, full.gradients);
  options_.stream_teacher = true;
  EXPECT_EQ(estimate().weights, 4 * (2 * norms + 2 * scales) + blocks);
  const MemoryEstimate all = estimate();
  options_.quant.frozen = {"."};  // nothing but blocks
  EXPECT_EQ(estimate().weights, 4 * (2 * norms) + blocks);
  EXPECT_EQ(estimate().optimizer, 0);
  EXPECT_LT(estimate().gradients, all.gradients);
}

TEST_F(MemoryEstimateTest, ActivationsFollowTheMicroBatchAndTheirCheckpointing) {
  const int64_t whole = estimate().activations;
  options_.activation_checkpointing = true;
  EXPECT_LT(estimate().activations, whole / 3);
  options_.activation_checkpointing = false;
  options_.micro_batch_tokens = 64;
  EXPECT_LT(estimate().activations, whole / 3);
}

TEST_F(MemoryEstimateTest, ATeacherThatIsAskedOnceIsNotThereLater) {
  const MemoryEstimate whole = estimate();
  options_.loss.teacher_top_k = 16;
  const MemoryEstimate kept = estimate();
  int64_t weights = 0;
  for (const PlanEntry& entry : plan_.entries)
    weights += entry.shape[0] * (entry.shape.size() > 1 ? entry.shape[1] : 1);
  EXPECT_EQ(kept.weights, whole.weights - 4 * weights);
  EXPECT_EQ(kept.logits, whole.logits / 2);
  EXPECT_GT(asking_bytes(*file_, options_), 4 * weights + kept.logits);
}

TEST_F(MemoryEstimateTest, ARefusalNamesSettingsThatFit) {
  const int64_t needed = estimate().total();
  EXPECT_EQ(refusal(needed), "");
  const std::string little = refusal(needed * 3 / 4);
  EXPECT_NE(little.find("it would fit with activation_checkpointing: true: "), std::string::npos)
      << little;
  options_.activation_checkpointing = true;
  options_.micro_batch_tokens = 64;
  options_.loss.chunk_positions = 32;
  options_.loss.kind = "ce";
  EXPECT_EQ(refusal(estimate().total()), "");
  options_ = {};
  options_.data.sequence_length = 64;
  const std::string hopeless = refusal(estimate().optimizer);
  EXPECT_NE(hopeless.find("the least that settings can make of it is "), std::string::npos)
      << hopeless;
  EXPECT_NE(hopeless.find("take a smaller model"), std::string::npos) << hopeless;
}

}  // namespace
}  // namespace nibble
