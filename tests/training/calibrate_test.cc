// Methods that look at activations, on stories260K and children's stories: as a start of training,
// and as files.
#include "training/calibrate.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "quant/format/rows.h"
#include "tests/io/temporary_folder.h"
#include "tests/model/tiny_llama.h"
#include "tests/training/stories.h"
#include "training/awq_start.h"
#include "training/learner.h"
#include "training/student.h"

namespace nibble {
namespace {

double largest_difference(const torch::Tensor& a, const torch::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

class CalibrateTest : public StoriesTest {
 protected:
  void SetUp() override {
    StoriesTest::SetUp();
    if (IsSkipped()) return;
    plan_ = plan("Q4_0");
    text_ = stories(200000);
    batches_ = calibration_batches(text_.train, 4096, 1, 2048);
    held_out_ = text_.held_out.at({0, 1, 2, 3});
  }
  Plan plan(const std::string& type) const { return plan_of(*source_, type); }
  /// KL from the teacher of a student that starts where the method says.
  double starting_kl(const std::string& method) {
    std::unique_ptr<Model> model = copy_model(*teacher_);
    StartingPoints start;
    if (is_calibrated(method)) start = starting_points(method, *model, plan_, batches_);
    Student student(std::move(model), &plan_, options_.quant, start);
    Learner learner(student, teacher_.get(), options_);
    torch::Tensor teacher_hidden;
    return learner.evaluate(held_out_, teacher_hidden).mean_kl();
  }

  TemporaryFolder folder_;
  Plan plan_;
  TrainOptions options_;
  TextData text_;
  std::vector<Batch> batches_;
  Batch held_out_;
};

TEST_F(CalibrateTest, GptqIsNearerToTheTeacherThanSearch) {
  EXPECT_LT(starting_kl("gptq"), 0.9 * starting_kl("search"));
}

TEST_F(CalibrateTest, AwqLeavesAModelThatComputesTheSame) {
  const std::unique_ptr<Model> model = copy_model(*teacher_);
  const StartingPoints points = awq_start(*model, plan_, batches_);
  for (const char* name : {"blk.0.attn_norm.weight", "blk.2.ffn_norm.weight"})
    EXPECT_FALSE(at::equal(model->find_weight(name)->value, teacher_->find_weight(name)->value))
        << name;
  const torch::Tensor wanted = teacher_->logits(held_out_), found = model->logits(held_out_);
  // Each factor rounds once where it goes and once where it comes from: 5 layers of float32.
  EXPECT_LT(largest_difference(found, wanted), 1e-4 * wanted.abs().max().item<double>());
  for (const auto& [name, point] : points)
    EXPECT_TRUE(at::equal(point.weights, model->find_weight(name)->value)) << name;
}

TEST_F(CalibrateTest, ImatrixLeavesTheModelAlone) {
  const std::unique_ptr<Model> model = copy_model(*teacher_);
  const StartingPoints points = imatrix_start(*model, plan_, batches_);
  EXPECT_EQ(points.count("token_embd.weight"), 0u);
  for (const PlanEntry& entry : plan_.entries)
    EXPECT_EQ(points.count(entry.tensor),
              entry.target == GgmlType::kQ4_0 && entry.tensor.starts_with("blk."))
        << entry.tensor;
  for (const Weight* weight : model->weights())
    EXPECT_TRUE(at::equal(weight->value, teacher_->find_weight(weight->name)->value))
        << weight->name;
}

// The file's bytes decode to what a student that starts there computes with, norms included.
TEST_F(CalibrateTest, FilesHoldWhatTheMethodFound) {
  for (const std::string type : {"Q4_0", "Q4_1", "Q2_0"})
    for (const std::string method : {"gptq", "awq", "imatrix"}) {
      plan_ = plan(type);
      const std::string out = folder_.file("out.gguf");
      quantize_calibrated(*source_, plan_, method, {text_.train, 4096, 1}, out);
      std::unique_ptr<Model> model = copy_model(*teacher_);
      const StartingPoints start = starting_points(method, *model, plan_, batches_);
      ASSERT_FALSE(start.empty());
      Student student(std::move(model), &plan_, options_.quant, start);
      const GgufFile written = GgufFile::open(out);
      EXPECT_EQ(written.metadata().get_string("nibble.method"), method);
      ASSERT_EQ(written.tensors().size(), plan_.entries.size());
      for (const GgufTensor& tensor : written.tensors()) {
        EXPECT_EQ(tensor.type, plan_.find(tensor.name)->target);
        std::vector<float> decoded(tensor.num_weights());
        decode_tensor(tensor.type, tensor.data, decoded);
        const torch::Tensor wanted = student.model().find_weight(tensor.name)->value.detach();
        EXPECT_EQ(std::memcmp(decoded.data(), wanted.const_data_ptr<float>(), wanted.nbytes()), 0)
            << type << ' ' << method << ' ' << tensor.name;
      }
    }
}

TEST_F(CalibrateTest, BatchesAreTheFirstThatTrainingSees) {
  const std::vector<int64_t> rows = step_sequences(1, 0, 20, text_.train.num_sequences());
  const std::vector<Batch> batches = calibration_batches(text_.train, 20 * 128 + 5, 1, 2048);
  ASSERT_EQ(batches.size(), 2u);  // of 2048 tokens
  const torch::Tensor all = at::cat({batches[0].tokens, batches[1].tokens});
  EXPECT_TRUE(at::equal(all, text_.train.at(rows).tokens));
  EXPECT_EQ(calibration_batches(text_.train, 1, 1, 2048).front().tokens.size(0), 1);
}

TEST_F(CalibrateTest, WithoutTextItSaysSo) {
  batches_.clear();
  for (const char* method : {"gptq", "awq", "imatrix"}) {
    const std::unique_ptr<Model> model = copy_model(*teacher_);
    EXPECT_THROW(starting_points(method, *model, plan_, batches_), Error) << method;
  }
}

// Every link of a model with shared heads, with biases or fused matrices: any factors at all.
class MoveFactors : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Calibrate, MoveFactors, testing::Values("llama", "phi3"));

TEST_P(MoveFactors, TheModelComputesTheSame) {
  const TemporaryFolder folder;
  TinyLlama tiny;
  tiny.take_architecture(GetParam());
  tiny.biases = true;
  tiny.write(folder.file("tiny.gguf"));
  const std::unique_ptr<Model> before = load_model(GgufFile::open(folder.file("tiny.gguf")));
  torch::manual_seed(9);
  const Batch batch{torch::randint(50, {3, 20}, torch::kInt64), {}};
  const torch::NoGradGuard no_grad;
  const torch::Tensor wanted = before->logits(batch);
  const size_t links = before->channel_links().size();
  EXPECT_EQ(links, 4u * 2u);
  for (size_t i = 0; i < links; ++i) {
    const std::unique_ptr<Model> after = before->copy();
    const ChannelLink link = after->channel_links()[i];
    const torch::Tensor factors = (torch::rand({link.num_rows()}) * 4 - 2).exp();
    move_factors(link, factors, factors.index_select(0, link.maker_row));
    EXPECT_GT(largest_difference(link.takers.front()->value,
                                 before->find_weight(link.takers.front()->name)->value),
              0.1);
    EXPECT_LT(largest_difference(after->logits(batch), wanted),
              1e-4 * wanted.abs().max().item<double>())
        << i;
  }
}

}  // namespace
}  // namespace nibble
