// One step on stories260K: targets, micro-batches that add up to one batch, and errors that name
// what is broken.
#include "training/learner.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/progress.h"
#include "model/made_weight.h"
#include "quant/fake/torch_device.h"
#include "training/data.h"
#include "training/name_patterns.h"

namespace nibble {
namespace {

const std::string kModel =
    std::string(NIBBLE_SOURCE_DIR) + "/../shared/data/models/stories260K/stories260K-f32.v3.gguf";

class LearnerTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kModel)) GTEST_SKIP() << "no " << kModel;
    Progress::set_quiet(true);
    const GgufFile file = GgufFile::open(kModel);
    teacher_ = load_model(file);
    PlanOptions plan;
    plan.type_name = "Q4_0";
    plan_ = make_plan(file, plan);
    options_.loss.kind = "mix";
    options_.loss.ce_weight = 0.5;
    torch::manual_seed(1);
    batch_.tokens = torch::randint(3, 500, {4, 32}, torch::kInt64);
    batch_.document = torch::zeros({4, 32}, torch::kInt64);
    batch_.document.narrow(1, 20, 12).fill_(1);
  }
  std::unique_ptr<Student> new_student() const {
    return std::make_unique<Student>(copy_model(*teacher_), &plan_, options_.quant);
  }
  std::string error_of_step(Student& student) const {
    Learner learner(student, teacher_.get(), options_);
    try {
      learner.step({batch_}, 1);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::unique_ptr<Model> teacher_;
  Plan plan_;
  TrainOptions options_;
  Batch batch_;
};

TEST_F(LearnerTest, MicroBatchesAddUpToTheBatch) {
  const auto rows = [&](int64_t first, int64_t count) {
    return Batch{batch_.tokens.narrow(0, first, count).contiguous(),
                 batch_.document.narrow(0, first, count).contiguous()};
  };
  const std::unique_ptr<Student> whole = new_student(), parts = new_student();
  Learner whole_learner(*whole, teacher_.get(), options_),
      parts_learner(*parts, teacher_.get(), options_);
  const StepResult one = whole_learner.step({batch_}, 1);
  const StepResult three = parts_learner.step({rows(0, 1), rows(1, 2), rows(3, 1)}, 1);
  // The same sums in another order, in float32.
  EXPECT_NEAR(one.loss, three.loss, 1e-5 * one.loss);
  EXPECT_NEAR(one.grad_norm, three.grad_norm, 1e-4 * one.grad_norm);
  EXPECT_EQ(one.sums.kl_positions, 4 * 32);
  EXPECT_EQ(one.sums.ce_positions, three.sums.ce_positions);
  EXPECT_EQ(one.sums.ce_positions, 4 * 30);
}

TEST_F(LearnerTest, OnlyTokensThatAreTrainedCount) {
  // A model looks back only: with the first 12 tokens trained, the rest might as well not be there.
  Batch masked = batch_, cut;
  masked.trained = torch::zeros({4, 32}, torch::kBool);
  masked.trained.narrow(1, 5, 7).fill_(true);
  cut.tokens = batch_.tokens.narrow(1, 0, 12).contiguous();
  cut.document = batch_.document.narrow(1, 0, 12).contiguous();
  cut.trained = masked.trained.narrow(1, 0, 12).contiguous();
  const std::unique_ptr<Student> whole = new_student(), short_one = new_student();
  Learner whole_learner(*whole, teacher_.get(), options_),
      short_learner(*short_one, teacher_.get(), options_);
  const StepResult one = whole_learner.step({masked}, 1);
  const StepResult other = short_learner.step({cut}, 1);
  EXPECT_EQ(one.sums.kl_positions, 4 * 7);
  EXPECT_EQ(one.sums.ce_positions, 4 * 7);
  EXPECT_NEAR(one.loss, other.loss, 1e-5 * one.loss);  // float32 sums of other lengths
  EXPECT_NEAR(one.grad_norm, other.grad_norm, 1e-4 * one.grad_norm);
}

TEST_F(LearnerTest, WhatCountsAndWhatDoesNotAddUpToAll) {
  const std::unique_ptr<Student> student = new_student();
  Learner learner(*student, teacher_.get(), options_);
  torch::Tensor hidden;
  const LossSums all = learner.evaluate(batch_, hidden);
  Batch some = batch_, others = batch_;
  some.trained = torch::rand({4, 32}).gt(0.6);
  others.trained = some.trained.logical_not();
  const LossSums a = learner.evaluate(some, hidden), b = learner.evaluate(others, hidden);
  EXPECT_GT(a.ce_positions, 0);
  EXPECT_EQ(a.ce_positions + b.ce_positions, all.ce_positions);
  EXPECT_EQ(a.kl_positions, a.ce_positions);
  EXPECT_NEAR(a.ce + b.ce, all.ce, 1e-6 * all.ce);  // rows of a matmul of another size
}

TEST_F(LearnerTest, WhatIsFrozenStaysAsItStarts) {
  for (const char* weights : {"full", "scales"}) {
    options_.quant.weights = weights;
    options_.quant.frozen = {"blk\\.[01]\\.attn", "^token_embd"};
    const std::unique_ptr<Student> student = new_student();
    ASSERT_TRUE(student->trains());
    std::map<std::string, torch::Tensor> before;
    for (Weight* weight : student->model().weights())
      before[weight->name] = values_of(weight->value.detach()).clone();
    options_.optimizer.learning_rate = options_.optimizer.scale_learning_rate = 0.05;
    Learner learner(*student, teacher_.get(), options_);
    for (int step = 0; step < 2; ++step) learner.step({batch_}, 1);
    const NamePatterns frozen(options_.quant.frozen);
    int64_t still = 0, moved = 0;
    for (Weight* weight : student->model().weights()) {
      const bool same = at::equal(values_of(weight->value.detach()), before[weight->name]);
      EXPECT_TRUE(same || !frozen.match(weight->name)) << weights << ' ' << weight->name;
      ++(same ? still : moved);
    }
    EXPECT_GT(moved, 10) << weights;
    EXPECT_GT(still, 8) << weights;
  }
  options_.quant.frozen = {"."};
  EXPECT_THROW(new_student(), Error);  // of scales alone
  options_.quant.weights = "full";
  EXPECT_FALSE(new_student()->trains());
}

TEST(NamePatterns, EachNamesATensorAndIsAnExpression) {
  Plan plan;
  plan.entries.push_back({"blk.0.attn_q.weight", {}, {}, {}, {}});
  NamePatterns({"attn", "^blk"}).check_all_name(plan);
  EXPECT_THROW(NamePatterns({"attn", "ffn"}).check_all_name(plan), Error);
  EXPECT_THROW(NamePatterns({"("}), Error);
}

TEST_F(LearnerTest, CoarsenessIsTheMeanOverWeightsWithLevels) {
  const std::unique_ptr<Student> student = new_student();
  double sum = 0, weights = 0;
  for (const TrainedTensor& tensor : student->tensors()) {
    if (tensor.type != GgmlType::kQ4_0 && tensor.type != GgmlType::kQ8_0) continue;  // F32, F16
    const double size = std::sqrt(tensor.weights.square().mean().item<double>());
    const auto count = static_cast<double>(tensor.weights.numel());
    sum += restore_quantizer(tensor).level_distance() / size * count;
    weights += count;
  }
  EXPECT_NEAR(student->coarseness(), sum / weights, 1e-6);
  const double of_q4_0 = student->coarseness();
  for (PlanEntry& entry : plan_.entries)
    if (entry.target == GgmlType::kQ4_0) entry.target = GgmlType::kQ8_0;
  // 4 bits more: a sixteenth, but for the scales' own choice of range.
  EXPECT_NEAR(new_student()->coarseness(), of_q4_0 / 16, of_q4_0 / 64);
  options_.quant.type = "none";
  EXPECT_EQ(new_student()->coarseness(), 1);
}

TEST_F(LearnerTest, GradientNormIsThatOfAllParameters) {
  // Against autograd through a plain model: unquantized, so that gradients are those of the weights
  // themselves.
  options_.quant.type = "none";
  const std::unique_ptr<Student> student = new_student();
  Learner learner(*student, teacher_.get(), options_);
  const StepResult step = learner.step({batch_}, 0);

  const std::unique_ptr<Model> plain = copy_model(*teacher_);
  for (Weight* weight : plain->weights()) weight->value.set_requires_grad(true);
  const torch::Tensor log_probabilities = at::log_softmax(plain->logits(batch_), -1).flatten(0, 1);
  const torch::Tensor ce = at::nll_loss(log_probabilities, next_token_targets(batch_), {},
                                        at::Reduction::Mean, /*ignore_index=*/-1);
  (0.5 * ce).backward();  // the student equals its teacher, so KL is 0 and at its minimum
  double sum = 0;
  for (Weight* weight : plain->weights())
    sum += weight->value.grad().to(torch::kFloat64).square().sum().item<double>();
  EXPECT_NEAR(step.loss, 0.5 * ce.item<double>(), 1e-5 * step.loss);  // float32 logits
  EXPECT_NEAR(step.grad_norm, std::sqrt(sum), 1e-4 * step.grad_norm);
}

TEST_F(LearnerTest, UpdatesMastersScalesAndMaterializes) {
  const std::unique_ptr<Student> student = new_student();
  const std::vector<TrainedTensor> before = [&] {
    std::vector<TrainedTensor> tensors = student->tensors();
    for (TrainedTensor& tensor : tensors) {
      tensor.weights = tensor.weights.clone();
      if (tensor.scale_ratios.defined()) tensor.scale_ratios = tensor.scale_ratios.clone();
    }
    return tensors;
  }();
  Learner learner(*student, teacher_.get(), options_);
  learner.step({batch_}, 1);
  const std::vector<TrainedTensor> after = student->tensors();
  for (size_t i = 0; i < after.size(); ++i) {
    EXPECT_FALSE(at::equal(before[i].weights, after[i].weights)) << after[i].name;
    if (after[i].type == GgmlType::kF32) continue;
    if (after[i].scale_ratios.defined()) {  // not where a row falls back to F16
      EXPECT_FALSE(at::equal(before[i].scale_ratios, after[i].scale_ratios)) << after[i].name;
    }
    torch::Tensor materialized = torch::empty_like(after[i].weights);
    restore_quantizer(after[i]).materialize(materialized);
    EXPECT_EQ(content_hash(materialized), after[i].materialized_hash) << after[i].name;
  }
}

TEST_F(LearnerTest, BadTensorIsNamedAndNothingIsUpdated) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::unique_ptr<Student> student = new_student();
  {
    const torch::NoGradGuard no_grad;
    student->model().find_weight("blk.2.ffn_up.weight")->value[3][5].fill_(nan);
  }
  const torch::Tensor masters = student->tensors()[0].weights.clone();
  const std::string error = error_of_step(*student);
  EXPECT_NE(error.find("first bad tensor: blk.2.ffn_up.weight"), std::string::npos) << error;
  EXPECT_TRUE(at::equal(masters, student->tensors()[0].weights));

  const std::unique_ptr<Student> healthy = new_student();
  teacher_->find_weight("output_norm.weight")->value[0].fill_(nan);
  const std::string of_teacher = error_of_step(*healthy);
  EXPECT_NE(of_teacher.find("first bad tensor: the teacher's hidden states"), std::string::npos)
      << of_teacher;
}

TEST_F(LearnerTest, AStepAsksTheTeacherOnce) {
  for (const char* dtype : {"float32", "bfloat16"}) {
    options_.dtype = dtype;
    const std::unique_ptr<Model> teacher = copy_model(*teacher_);
    const std::unique_ptr<Student> student = new_student();
    Learner learner(*student, teacher.get(), options_);
    std::vector<torch::Tensor> teacher_hidden(1);
    const StepResult first = learner.step({batch_}, /*rate_factor=*/0, &teacher_hidden);
    ASSERT_TRUE(teacher_hidden[0].defined());
    teacher->find_weight("output_norm.weight")->value.zero_();
    const StepResult again = learner.step({batch_}, /*rate_factor=*/0, &teacher_hidden);
    EXPECT_EQ(first.sums.kl, again.sums.kl);
    EXPECT_EQ(first.grad_norm, again.grad_norm);
  }
}

TEST_F(LearnerTest, EvaluationAsksTheTeacherOnce) {
  const std::unique_ptr<Student> student = new_student();
  Learner learner(*student, teacher_.get(), options_);
  torch::Tensor teacher_hidden;
  const LossSums first = learner.evaluate(batch_, teacher_hidden);
  ASSERT_TRUE(teacher_hidden.defined());
  teacher_->find_weight("output_norm.weight")->value.zero_();
  const LossSums again = learner.evaluate(batch_, teacher_hidden);
  EXPECT_EQ(first.kl, again.kl);
  EXPECT_EQ(first.ce, again.ce);
}

/// A tensor's state on the CPU, as a checkpoint has it.
TrainedTensor on_cpu(TrainedTensor tensor) {
  for (torch::Tensor* each : {&tensor.weights, &tensor.scale_ratios, &tensor.initial_scales})
    if (each->defined()) *each = each->cpu();
  return tensor;
}

TEST_F(LearnerTest, AGpuTrainsAsTheCpuDoesAndWhatItTrainsShips) {
  const CudaGpus gpus = cuda_gpus();
  if (gpus.count == 0) GTEST_SKIP() << gpus.problem;
  const std::unique_ptr<Model> gpu_teacher =
      load_model(GgufFile::open(kModel), torch_device({true, 0}));
  for (const char* scales : {"learned", "dynamic", "frozen"}) {
    options_.quant.scales = scales;
    const std::unique_ptr<Student> here = new_student();
    Student there(copy_model(*gpu_teacher), &plan_, options_.quant);
    Learner here_learner(*here, teacher_.get(), options_),
        there_learner(there, gpu_teacher.get(), options_);
    for (int step = 0; step < 4; ++step) {
      const StepResult cpu = here_learner.step({batch_}, 1), gpu = there_learner.step({batch_}, 1);
      // Equal weights at first, so only sums differ; then weights near a rounding border part ways.
      const double tolerance = step == 0 ? 1e-4 : 3e-2;
      EXPECT_NEAR(gpu.loss, cpu.loss, tolerance * cpu.loss) << scales << ", step " << step;
      EXPECT_NEAR(gpu.grad_norm, cpu.grad_norm, 10 * tolerance * cpu.grad_norm);
    }
    for (const TrainedTensor& trained : there.tensors()) {
      if (trained.type == GgmlType::kF32) continue;
      const TrainedTensor tensor = on_cpu(trained);
      torch::Tensor materialized = torch::empty_like(tensor.weights);
      restore_quantizer(tensor).materialize(materialized);
      EXPECT_EQ(content_hash(materialized), tensor.materialized_hash) << tensor.name;
    }
  }
}

}  // namespace
}  // namespace nibble
