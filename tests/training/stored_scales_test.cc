// Training of scales alone (`weights: scales`) on stories260K: gradients are autograd's, nothing
// but scales moves, and a file's own codes and types are kept.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "model/made_weight.h"
#include "quant/mix/quantize_file.h"
#include "tests/io/temporary_folder.h"
#include "training/data.h"
#include "training/learner.h"
#include "training/stored_start.h"

namespace nibble {
namespace {

const std::string kModel =
    std::string(NIBBLE_SOURCE_DIR) + "/../shared/data/models/stories260K/stories260K-f32.v3.gguf";

class StoredScalesTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kModel)) GTEST_SKIP() << "no " << kModel;
    Progress::set_quiet(true);
    set_quiet_log(true);  // that tensors of F16 stay as they are
    source_ = std::make_unique<GgufFile>(GgufFile::open(kModel));
    teacher_ = load_model(*source_);
    plan_ = plan_of("Q4_1");
    options_.quant.weights = "scales";
    options_.optimizer.scale_learning_rate = 3e-3;
    torch::manual_seed(1);
    batch_.tokens = torch::randint(3, 500, {4, 32}, torch::kInt64);
  }
  void TearDown() override { set_quiet_log(false); }

  Plan plan_of(const std::string& type) const {
    PlanOptions options;
    options.type_name = type;
    return make_plan(*source_, options);
  }
  std::unique_ptr<Student> new_student(const StartingPoints& start = {}) const {
    return std::make_unique<Student>(copy_model(*teacher_), &plan_, options_.quant, start);
  }
  /// tensors(), whose state later steps leave alone.
  static std::vector<TrainedTensor> snapshot(const Student& student) {
    std::vector<TrainedTensor> tensors = student.tensors();
    for (TrainedTensor& tensor : tensors)
      for (torch::Tensor* each : {&tensor.weights, &tensor.blocks, &tensor.scale_ratios})
        if (each->defined()) *each = each->clone();
    return tensors;
  }

  std::unique_ptr<GgufFile> source_;
  std::unique_ptr<Model> teacher_;
  Plan plan_;
  TrainOptions options_;
  Batch batch_;
};

TEST_F(StoredScalesTest, OnlyScalesMoveAndCodesStay) {
  const std::unique_ptr<Student> student = new_student();
  Learner learner(*student, teacher_.get(), options_);
  const std::vector<TrainedTensor> before = snapshot(*student);
  double first = 0, last = 0;
  for (int step = 0; step < 15; ++step) {
    last = learner.step({batch_}, 1).loss;
    if (step == 0) first = last;
  }
  EXPECT_LT(last, 0.8 * first);
  const std::vector<TrainedTensor> after = student->tensors();
  int64_t trained = 0;
  for (size_t i = 0; i < after.size(); ++i) {
    EXPECT_EQ(after[i].blocks.defined(), after[i].type != GgmlType::kF32) << after[i].name;
    if (!after[i].blocks.defined()) {
      EXPECT_TRUE(at::equal(before[i].weights, after[i].weights)) << after[i].name;
      continue;
    }
    EXPECT_FALSE(after[i].weights.defined() || after[i].initial_scales.defined());
    EXPECT_TRUE(at::equal(before[i].blocks, after[i].blocks)) << after[i].name;
    FakeQuantizer quantizer = restore_quantizer(after[i]);
    torch::Tensor values = torch::empty(quantizer.sizes());
    quantizer.materialize(values);
    EXPECT_EQ(content_hash(values), after[i].materialized_hash) << after[i].name;
    if (!after[i].scale_ratios.defined()) continue;
    ++trained;
    EXPECT_FALSE(at::equal(before[i].scale_ratios, after[i].scale_ratios)) << after[i].name;
    EXPECT_NE(before[i].materialized_hash, after[i].materialized_hash) << after[i].name;
  }
  EXPECT_EQ(learner.optimizer().num_parameters(), trained);
  EXPECT_GT(trained, 10);
}

// dL/dW^ by autograd through a plain model of the same weights, then the format's own map.
TEST_F(StoredScalesTest, GradientsAreAutogradsAndAreGoneOnceMapped) {
  options_.loss.kind = "ce";
  const std::unique_ptr<Student> student = new_student();
  const std::unique_ptr<Model> plain = copy_model(student->model());
  for (Weight* weight : plain->weights()) weight->value.set_requires_grad(true);
  const auto ce_of = [&](Model& model) {
    return at::nll_loss(at::log_softmax(model.logits(batch_), -1).flatten(0, 1),
                        next_token_targets(batch_), {}, at::Reduction::Mean, /*ignore_index=*/-1);
  };
  ce_of(*plain).backward();
  Learner learner(*student, nullptr, options_);
  const double norm = learner.step({batch_}, /*rate_factor=*/0).grad_norm;
  double sum = 0;
  for (const TrainedTensor& tensor : student->tensors()) {
    EXPECT_FALSE(student->model().find_weight(tensor.name)->value.grad().defined()) << tensor.name;
    if (!tensor.scale_ratios.defined()) continue;
    torch::Tensor gradient;
    restore_quantizer(tensor).add_scale_gradients(
        plain->find_weight(tensor.name)->value.grad().contiguous(), gradient);
    sum += gradient.to(torch::kFloat64).square().sum().item<double>();
  }
  EXPECT_NEAR(norm, std::sqrt(sum), 1e-4 * norm);  // the same sums in another order, in float32
  EXPECT_GT(norm, 0);

  // In the backward pass itself, before anybody clears anything.
  student->model().hidden(batch_).sum().backward();
  for (Weight* weight : student->model().weights())
    EXPECT_FALSE(weight->value.grad().defined()) << weight->name;
  EXPECT_GT(student->backward(), 0);
  student->clear_gradients();
}

TEST_F(StoredScalesTest, MicroBatchesAddUpToTheBatch) {
  const auto rows = [&](int64_t first, int64_t count) {
    return Batch{batch_.tokens.narrow(0, first, count).contiguous(), {}};
  };
  const std::unique_ptr<Student> whole = new_student(), parts = new_student();
  Learner whole_learner(*whole, teacher_.get(), options_),
      parts_learner(*parts, teacher_.get(), options_);
  const StepResult one = whole_learner.step({batch_}, 1);
  const StepResult two = parts_learner.step({rows(0, 1), rows(1, 3)}, 1);
  EXPECT_NEAR(one.loss, two.loss, 1e-5 * one.loss);  // float32 sums in another order
  EXPECT_NEAR(one.grad_norm, two.grad_norm, 1e-4 * one.grad_norm);
  // And the next step begins with none of it.
  const double again = whole_learner.step({batch_}, 0).grad_norm;
  EXPECT_NEAR(whole_learner.step({batch_}, 0).grad_norm, again, 1e-6 * again);
}

TEST_F(StoredScalesTest, ABadWeightIsNamedAndNothingIsUpdated) {
  options_.loss.kind = "ce";
  const std::unique_ptr<Student> student = new_student();
  Learner learner(*student, nullptr, options_);
  const std::vector<TrainedTensor> before = snapshot(*student);
  {
    const torch::NoGradGuard no_grad;
    torch::Tensor& value = student->model().find_weight("blk.2.ffn_up.weight")->value;
    value = values_of(value);
    value[3][5].fill_(NAN);
  }
  try {
    learner.step({batch_}, 1);
    ADD_FAILURE() << "took a NaN";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("blk.2.ffn_up.weight"), std::string::npos)
        << error.what();
  }
  const std::vector<TrainedTensor> after = student->tensors();
  for (size_t i = 0; i < after.size(); ++i) {
    if (!after[i].scale_ratios.defined()) continue;
    EXPECT_TRUE(at::equal(before[i].scale_ratios, after[i].scale_ratios));
  }
}

TEST_F(StoredScalesTest, AFileIsTheStartBitForBit) {
  const TemporaryFolder folder;
  const std::string path = folder.file("x.gguf");
  const Plan other = plan_of("Q4_0");
  quantize_file(*source_, other, EncodeMethod::kGgml, path);
  const GgufFile file = GgufFile::open(path);
  plan_ = plan_like(*source_, file);
  StartingPoints start;
  std::unique_ptr<Model> model = load_stored(path, start);
  const std::unique_ptr<Model> as_loaded = copy_model(*model);
  const Student student(std::move(model), &plan_, options_.quant, start);
  for (const TrainedTensor& tensor : student.tensors()) {
    const GgufTensor& stored = file.tensor(tensor.name);
    EXPECT_EQ(tensor.type, stored.type);
    EXPECT_EQ(tensor.materialized_hash,
              content_hash(as_loaded->find_weight(tensor.name)->value.detach()))
        << tensor.name;
    if (tensor.type == GgmlType::kF32) continue;
    const std::vector<std::byte> blocks = restore_quantizer(tensor).blocks();
    EXPECT_TRUE(std::equal(blocks.begin(), blocks.end(), stored.data.begin(), stored.data.end()))
        << tensor.name;
  }
}

TEST_F(StoredScalesTest, WhatIsFrozenIsItsBlocksAlone) {
  options_.quant.frozen = {"ffn_"};
  const std::unique_ptr<Student> student = new_student();
  Learner learner(*student, teacher_.get(), options_);
  const std::vector<TrainedTensor> before = snapshot(*student);
  for (int step = 0; step < 3; ++step) learner.step({batch_}, 1);
  const std::vector<TrainedTensor> after = student->tensors();
  int64_t num_frozen = 0;
  for (size_t i = 0; i < after.size(); ++i) {
    if (after[i].name.find("ffn_") == std::string::npos || !after[i].blocks.defined()) continue;
    ++num_frozen;
    EXPECT_EQ(after[i].mode, ScaleMode::kFrozen) << after[i].name;
    EXPECT_FALSE(after[i].scale_ratios.defined()) << after[i].name;
    EXPECT_EQ(after[i].materialized_hash, before[i].materialized_hash) << after[i].name;
    const std::vector<std::byte> blocks = restore_quantizer(after[i]).blocks();
    EXPECT_EQ(std::memcmp(blocks.data(), before[i].blocks.const_data_ptr(), blocks.size()), 0)
        << after[i].name;
  }
  EXPECT_EQ(num_frozen, 15);  // of five blocks
  const std::unique_ptr<Student> other = new_student();
  other->restore(after);
  const std::vector<TrainedTensor> restored = other->tensors();
  for (size_t i = 0; i < after.size(); ++i)
    EXPECT_EQ(restored[i].materialized_hash, after[i].materialized_hash) << after[i].name;
}

TEST_F(StoredScalesTest, RefusesAPlanWithoutScalesThatTrain) {
  plan_ = plan_of("F16");
  try {
    new_student();
    ADD_FAILURE() << "was not refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), 2);
    EXPECT_STREQ(
        error.what(),
        "quant.weights is scales, but no tensor that is not frozen has scales that can be trained");
  }
}

}  // namespace
}  // namespace nibble
