// Training and calibration of a llama with experts: what no token reaches stays as it is, and a
// stack's starting points are those of its experts.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <set>
#include <string>

#include "base/log.h"
#include "base/progress.h"
#include "model/made_weight.h"
#include "quant/fake/on_grid.h"
#include "tests/io/temporary_folder.h"
#include "tests/model/tiny_llama.h"
#include "training/calibrate.h"
#include "training/learner.h"
#include "training/student.h"

namespace nibble {
namespace {

constexpr int64_t kExperts = 24;

class ExpertsTest : public testing::Test {
 protected:
  ExpertsTest() {
    Progress::set_quiet(true);
    set_quiet_log(true);
    TinyLlama tiny;
    tiny.take_architecture("mixtral");
    tiny.experts = kExperts;
    tiny.feed_forward = 64;
    tiny.write(folder_.file("tiny.gguf"));
    file_ = std::make_unique<GgufFile>(GgufFile::open(folder_.file("tiny.gguf")));
    teacher_ = load_model(*file_);
    PlanOptions plan;
    plan.type_name = "Q4_0";
    plan.pure = true;
    plan_ = make_plan(*file_, plan);
    options_.loss.kind = "kl";  // all positions count
    options_.optimizer.learning_rate = options_.optimizer.scale_learning_rate = 0.01;
    options_.optimizer.weight_decay = 0.1;
  }
  ~ExpertsTest() override { set_quiet_log(false); }

  static Batch batch(uint64_t seed, int64_t length) {
    torch::manual_seed(seed);
    return {torch::randint(50, {1, length}, torch::kInt64), {}};
  }
  /// "blk.0.ffn_up_exps.weight 3": those that a batch reaches in a model.
  static std::set<std::string> reached(Model& model, const Batch& batch) {
    std::set<std::string> found;
    const torch::NoGradGuard no_grad;
    const MatmulObservation observation(
        model,
        [&](const torch::Tensor& x, const std::vector<const Weight*>& weights, int64_t expert) {
          for (const Weight* weight : weights)
            if (expert != kNoExpert && x.size(0) > 0)
              found.insert(weight->name + " " + std::to_string(expert));
        });
    model.hidden(batch);
    return found;
  }
  /// Of each expert's matrix, what trains: masters or scales.
  static std::map<std::string, torch::Tensor> state(const Student& student) {
    std::map<std::string, torch::Tensor> state;
    for (const TrainedTensor& tensor : student.tensors()) {
      if (!tensor.name.ends_with("_exps.weight")) continue;
      const torch::Tensor& whole = tensor.blocks.defined() ? tensor.scale_ratios : tensor.weights;
      for (int64_t expert = 0; expert < kExperts; ++expert)
        state[tensor.name + " " + std::to_string(expert)] =
            whole.detach().view({kExperts, -1}).select(0, expert).clone();
    }
    return state;
  }

  TemporaryFolder folder_;
  std::unique_ptr<GgufFile> file_;
  std::unique_ptr<Model> teacher_;
  Plan plan_;
  TrainOptions options_;
};

TEST_F(ExpertsTest, WhatNoTokenReachesIsLeftAlone) {
  options_.quant.lora_rank = 4;
  for (const char* weights : {"full", "lora", "rounding", "scales"})
    for (const bool relative : {false, true}) {
      if (relative && std::string(weights) == "scales") continue;  // of masters only
      options_.quant.weights = weights;
      options_.optimizer.relative = relative;
      Student student(copy_model(*teacher_), &plan_, options_.quant);
      Learner learner(student, teacher_.get(), options_);
      int64_t moved_before = 0;
      std::set<std::string> ever;
      // The second batch leaves experts alone that have moments of the first.
      for (const uint64_t seed : {1, 2}) {
        const Batch tokens = batch(seed, 6);
        const std::set<std::string> wanted = reached(student.model(), tokens);
        const auto before = state(student);
        const StepResult step = learner.step({tokens}, 1);
        for (const auto& [name, value] : state(student))
          EXPECT_NE(at::equal(value, before.at(name)), wanted.contains(name))
              << weights << ' ' << name << ' ' << seed;
        EXPECT_EQ(step.num_unreached, 6 * kExperts - std::ssize(wanted));
        for (const std::string& name : ever) moved_before += !wanted.contains(name);
        ever.insert(wanted.begin(), wanted.end());
      }
      EXPECT_GT(moved_before, 0);
    }
}

TEST_F(ExpertsTest, UnquantizedExpertsTooAreLeftAlone) {
  options_.quant.type = "none";
  options_.loss.kind = "ce";
  Student student(copy_model(*teacher_), nullptr, options_.quant);
  Learner learner(student, nullptr, options_);
  for (const uint64_t seed : {1, 2}) {
    const Batch tokens = batch(seed, 6);
    const std::set<std::string> wanted = reached(student.model(), tokens);
    const auto before = state(student);
    learner.step({tokens}, 1);
    int64_t moved = 0;
    for (const auto& [name, value] : state(student)) {
      const bool same = at::equal(value, before.at(name));
      EXPECT_TRUE(same || wanted.contains(name)) << name;
      moved += !same;
    }
    EXPECT_GT(moved, 12);
  }
}

TEST_F(ExpertsTest, TheLoadBalanceIsPartOfTheLoss) {
  const Batch tokens = batch(1, 32);
  const auto step = [&](double weight) {
    options_.loss.load_balance = weight;
    Student student(copy_model(*teacher_), &plan_, options_.quant);
    StepResult result = Learner(student, teacher_.get(), options_).step({tokens, batch(2, 16)}, 1);
    return std::pair(result,
                     student.model().find_weight("blk.0.ffn_gate_inp.weight")->value.detach());
  };
  const auto [without, router] = step(0);
  const auto [with, other] = step(0.5);
  EXPECT_EQ(without.load_balance, 0);
  EXPECT_GT(with.load_balance, 2);  // of 2 experts used, where all are alike
  EXPECT_NEAR(with.loss, without.loss + 0.5 * with.load_balance, 1e-5);
  EXPECT_FALSE(at::equal(router, other));
}

TEST_F(ExpertsTest, StartingPointsAreWhatTheModelBecomes) {
  for (const char* method : {"gptq", "awq", "imatrix"}) {
    const std::unique_ptr<Model> model = copy_model(*teacher_);
    const StartingPoints points = starting_points(method, *model, plan_, {batch(1, 8)});
    for (const char* name : {"blk.0.ffn_gate_exps.weight", "blk.1.ffn_down_exps.weight"})
      ASSERT_EQ(points.count(name), 1u) << method << ' ' << name;
    EXPECT_EQ(points.count("blk.0.ffn_gate_inp.weight"), 0u);
    for (const char* weights : {"full", "scales"}) {
      options_.quant.weights = weights;
      Student student(copy_model(*teacher_), &plan_, options_.quant, points);
      for (const auto& [name, point] : points) {
        const Format& format = require_format(plan_.find(name)->target);
        const torch::Tensor rounded = fake_quantized(format, point.weights, point.scales);
        EXPECT_TRUE(at::equal(values_of(student.model().find_weight(name)->value), rounded))
            << method << ' ' << name << ' ' << weights;
        const bool in_model = at::equal(model->find_weight(name)->value, rounded);
        EXPECT_EQ(in_model, std::string(method) == "gptq") << name;
      }
    }
  }
}

// As each expert's matrix alone would start, with what entered it; all columns alike where nothing
// did.
TEST_F(ExpertsTest, ImportanceIsEachExpertsOwn) {
  const Batch tokens = batch(1, 8);
  const std::string name = "blk.0.ffn_down_exps.weight";
  std::map<int64_t, torch::Tensor> energies;
  {
    const torch::NoGradGuard no_grad;
    const MatmulObservation observation(
        *teacher_,
        [&](const torch::Tensor& x, const std::vector<const Weight*>& weights, int64_t expert) {
          if (weights[0]->name == name)
            energies[expert] = x.size(0) > 0 ? x.square().sum(0) : torch::ones({x.size(1)});
        });
    teacher_->hidden(tokens);
  }
  ASSERT_EQ(std::ssize(energies), kExperts);
  const std::unique_ptr<Model> model = copy_model(*teacher_);
  const StartingPoint point = starting_points("imatrix", *model, plan_, {tokens}).at(name);
  const Format& format = require_format(GgmlType::kQ4_0);
  for (const auto& [expert, energy] : energies) {
    const torch::Tensor matrix = teacher_->find_weight(name)->matrix(expert).contiguous();
    const torch::Tensor scales = chosen_scales(format, matrix, energy);
    EXPECT_TRUE(at::equal(point.scales.narrow(0, expert * matrix.size(0), matrix.size(0)), scales))
        << expert;
  }
}

}  // namespace
}  // namespace nibble
