// GPTQ as the place where training starts, on stories260K and children's stories.
#include "training/gptq_start.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "model/made_weight.h"
#include "tests/training/stories.h"
#include "training/learner.h"
#include "training/student.h"

namespace nibble {
namespace {

class GptqStartTest : public StoriesTest {
 protected:
  void SetUp() override {
    StoriesTest::SetUp();
    if (IsSkipped()) return;
    plan_ = plan_of(*source_, "Q4_0");
    const TextData text = stories(200000);
    for (int64_t row = 0; row < 32; ++row) calibration_.push_back(text.train.at({row}));
    held_out_ = text.held_out.at({0, 1, 2, 3});
  }
  /// KL from the teacher of a student that starts there.
  double starting_kl(const StartingPoints& start) {
    Student student(copy_model(*teacher_), &plan_, options_.quant, start);
    Learner learner(student, teacher_.get(), options_);
    torch::Tensor teacher_hidden;
    return learner.evaluate(held_out_, teacher_hidden).mean_kl();
  }
  StartingPoints start(int64_t max_bytes = kMaxHessianBytes) {
    const std::unique_ptr<Model> model = copy_model(*teacher_);
    return gptq_start(*model, plan_, calibration_, max_bytes);
  }

  Plan plan_;
  TrainOptions options_;
  std::vector<Batch> calibration_;
  Batch held_out_;
};

TEST_F(GptqStartTest, IsNearerToTheTeacherThanSearch) {
  const StartingPoints points = start();
  EXPECT_EQ(points.count("token_embd.weight"), 0u);
  for (const PlanEntry& entry : plan_.entries)
    EXPECT_EQ(points.count(entry.tensor),
              entry.target == GgmlType::kQ4_0 && entry.tensor.starts_with("blk."))
        << entry.tensor;
  EXPECT_LT(starting_kl(points), 0.9 * starting_kl({}));
}

// Later matrices then see rounded inputs.
TEST_F(GptqStartTest, SmallPassesDoAsWell) {
  EXPECT_LT(starting_kl(start(/*max_bytes=*/1)), 0.9 * starting_kl({}));
}

TEST_F(GptqStartTest, TheModelIsLeftAsTheStudentBegins) {
  const std::unique_ptr<Model> model = copy_model(*teacher_);
  const StartingPoints points = gptq_start(*model, plan_, calibration_);
  ASSERT_FALSE(points.empty());
  for (const char* weights : {"full", "scales"}) {
    options_.quant.weights = weights;
    Student student(copy_model(*teacher_), &plan_, options_.quant, points);
    for (const auto& [name, point] : points)
      EXPECT_TRUE(at::equal(values_of(student.model().find_weight(name)->value),
                            model->find_weight(name)->value))
          << name << ", " << weights;
  }
}

TEST_F(GptqStartTest, WithoutTextItSaysSo) {
  calibration_.clear();
  EXPECT_THROW(start(), Error);
}

}  // namespace
}  // namespace nibble
