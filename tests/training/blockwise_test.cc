// Block-wise reconstruction on stories260K and children's stories.
#include "training/blockwise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "quant/fake/on_grid.h"
#include "tests/io/temporary_folder.h"
#include "tests/training/stories.h"
#include "training/blockwise_file.h"
#include "training/learner.h"

namespace nibble {
namespace {

class BlockwiseTest : public StoriesTest {
 protected:
  void SetUp() override {
    StoriesTest::SetUp();
    if (IsSkipped()) return;
    plan_ = plan_of(*source_, "Q4_0");
    const TextData text = stories(400000);
    for (int64_t row = 0; row < 48; row += 2) batches_.push_back(text.train.at({row, row + 1}));
    batches_.push_back(text.train.at({48}));  // a smaller one
    held_out_ = text.held_out.at({0, 1, 2, 3});
  }
  void train_nothing() {
    options_.blockwise.learning_rate = options_.blockwise.scale_learning_rate = 0;
  }
  std::unique_ptr<Blockwise> stage() {
    return std::make_unique<Blockwise>(*source_, plan_, options_, batches_, none_, nullptr,
                                       folder_.path());
  }
  StartingPoints start(Model& model, const StartingPoints& from = {}) {
    return blockwise_start(*source_, plan_, options_, batches_, from, model, folder_.path());
  }
  double starting_kl(std::unique_ptr<Model> model, const StartingPoints& start) {
    Student student(std::move(model), &plan_, options_.quant, start);
    Learner learner(student, teacher_.get(), options_);
    torch::Tensor teacher_hidden;
    return learner.evaluate(held_out_, teacher_hidden).mean_kl();
  }

  Plan plan_;
  TrainOptions options_;
  std::vector<Batch> batches_;
  Batch held_out_;
  StartingPoints none_;
  TemporaryFolder folder_;
};

TEST_F(BlockwiseTest, IsNearerToTheTeacherThanSearch) {
  const double searched = starting_kl(copy_model(*teacher_), {});
  std::unique_ptr<Model> model = copy_model(*teacher_);
  const StartingPoints points = start(*model);
  EXPECT_LT(starting_kl(std::move(model), points), 0.6 * searched);
  EXPECT_EQ(folder_.num_files(), 0u);
}

TEST_F(BlockwiseTest, ErrorsCountByWhatTheyCost) {
  const auto kl_of_blocks = [&](int64_t fisher_tokens) {
    options_.blockwise.fisher_tokens = fisher_tokens;
    std::unique_ptr<Model> model = copy_model(*teacher_);
    const StartingPoints points = start(*model);
    return starting_kl(std::move(model), points);
  };
  EXPECT_LT(kl_of_blocks(4096), kl_of_blocks(0));
  EXPECT_EQ(folder_.num_files(), 0u);
}

// Its inputs are those that the quantized blocks before it make, its target what the unquantized
// ones make of their own.
TEST_F(BlockwiseTest, TheErrorIsOfTheQuantizedModelSoFar) {
  train_nothing();
  const std::unique_ptr<Blockwise> blocks = stage();
  blocks->take_ends();
  Student student(copy_model(*teacher_), &plan_, options_.quant, {});
  std::vector<torch::Tensor> wanted, made;
  const torch::NoGradGuard no_grad;
  for (const Batch& batch : batches_) {
    wanted.push_back(teacher_->embed(batch));
    made.push_back(student.model().embed(batch));
  }
  for (int64_t i = 0; i < blocks->num_blocks(); ++i) {
    double sum = 0;
    const std::unique_ptr<Model> full = load_model(*source_, torch::kCPU, {i, 1, false});
    const std::unique_ptr<Model> rounded = load_model(*source_, torch::kCPU, {i, 1, false});
    for (Weight* weight : rounded->weights())
      weight->value.copy_(student.model().find_weight(weight->name)->value);
    for (size_t b = 0; b < batches_.size(); ++b) {
      wanted[b] = full->blocks(wanted[b], batches_[b]);
      made[b] = rounded->blocks(made[b], batches_[b]);
      const torch::Tensor error = (made[b] - wanted[b]).square().sum(1) / wanted[b].square().sum(1);
      sum += error.mean().item<double>();
    }
    const TrainedBlock block = blocks->train_block();
    const double mean = sum / static_cast<double>(batches_.size());
    EXPECT_NEAR(block.error_before, mean, 1e-5 * mean);
    EXPECT_NEAR(block.error_after, mean, 1e-5 * mean);
    EXPECT_GT(mean, 1e-4);
  }
}

// Masters lie in the middle of their codes, so that W^ is what it was and the next stage's first
// steps tip no code over.
TEST_F(BlockwiseTest, TheNextStageBeginsWithTheSameWeights) {
  std::map<std::string, uint64_t> hashes;
  const std::unique_ptr<Blockwise> blocks = stage();
  for (const TrainedTensor& tensor : blocks->take_ends())
    hashes[tensor.name] = tensor.materialized_hash;
  for (int64_t i = 0; i < blocks->num_blocks(); ++i)
    for (const TrainedTensor& tensor : blocks->train_block().tensors)
      hashes[tensor.name] = tensor.materialized_hash;
  std::unique_ptr<Model> model = copy_model(*teacher_);
  const StartingPoints points = start(*model);
  const Student student(std::move(model), &plan_, options_.quant, points);
  for (const TrainedTensor& tensor : student.tensors()) {
    EXPECT_EQ(tensor.materialized_hash, hashes[tensor.name]) << tensor.name;
    if (tensor.type != GgmlType::kQ4_0) continue;
    EXPECT_EQ(content_hash(tensor.weights), tensor.materialized_hash) << tensor.name;
  }
}

// Where there is a start, it is gone on from: nothing trained is nothing changed.
TEST_F(BlockwiseTest, GoesOnFromAStart) {
  train_nothing();
  const std::unique_ptr<Model> model = copy_model(*teacher_);
  for (Weight* weight : model->weights())
    if (weight->value.dim() == 1) weight->value.mul_(2);  // as AWQ moves factors out of norms
  StartingPoints from;
  Weight* weight = model->find_weight("blk.1.ffn_up.weight");
  const torch::Tensor masters = weight->value / 2;
  from[weight->name] = {
      masters, chosen_scales(require_format(GgmlType::kQ4_0), masters, torch::Tensor()), {}};
  const StartingPoints points = start(*model, from);
  const Student before(copy_model(*model), &plan_, options_.quant, from);
  const Student after(copy_model(*model), &plan_, options_.quant, points);
  const std::vector<TrainedTensor> one = before.tensors(), two = after.tensors();
  for (size_t i = 0; i < one.size(); ++i)
    EXPECT_EQ(one[i].materialized_hash, two[i].materialized_hash) << one[i].name;
}

TEST_F(BlockwiseTest, DynamicScalesTrainToo) {
  options_.quant.scales = "dynamic";
  const double searched = starting_kl(copy_model(*teacher_), {});
  std::unique_ptr<Model> model = copy_model(*teacher_);
  const StartingPoints points = start(*model);
  EXPECT_LT(starting_kl(std::move(model), points), searched);
}

TEST_F(BlockwiseTest, WritesAFileBlockByBlock) {
  const std::string out = folder_.file("out.gguf");
  quantize_blockwise(*source_, plan_, batches_, out);
  EXPECT_EQ(folder_.num_files(), 1u);
  options_.dtype = "auto";
  std::unique_ptr<Model> model = copy_model(*teacher_);
  const StartingPoints points = start(*model);
  const Student student(std::move(model), &plan_, options_.quant, points);
  const std::unique_ptr<Model> written = load_model(GgufFile::open(out));
  for (const TrainedTensor& tensor : student.tensors())
    EXPECT_EQ(content_hash(written->find_weight(tensor.name)->value), tensor.materialized_hash)
        << tensor.name;
}

TEST_F(BlockwiseTest, TheOrderOfTheFileDoesNotMatter) {
  std::vector<GgufWriter::Tensor> table;
  for (const GgufTensor& tensor : source_->tensors())
    table.push_back({tensor.name, tensor.shape, tensor.type});
  std::reverse(table.begin(), table.end());
  {
    GgufWriter writer(folder_.file("reversed.gguf"), source_->metadata(), table);
    for (const GgufWriter::Tensor& tensor : table) writer.write(source_->tensor(tensor.name).data);
    writer.finish();
  }
  const GgufFile reversed = GgufFile::open(folder_.file("reversed.gguf"));
  quantize_blockwise(*source_, plan_, batches_, folder_.file("a.gguf"));
  quantize_blockwise(reversed, plan_of(reversed, "Q4_0"), batches_, folder_.file("b.gguf"));
  const GgufFile a = GgufFile::open(folder_.file("a.gguf")),
                 b = GgufFile::open(folder_.file("b.gguf"));
  for (const GgufTensor& tensor : a.tensors()) {
    const GgufTensor& other = b.tensor(tensor.name);
    ASSERT_EQ(tensor.type, other.type);
    EXPECT_TRUE(std::ranges::equal(tensor.data, other.data)) << tensor.name;
  }
}

TEST_F(BlockwiseTest, WithoutTextItSaysSo) {
  batches_.clear();
  EXPECT_THROW(stage(), Error);
}

}  // namespace
}  // namespace nibble
