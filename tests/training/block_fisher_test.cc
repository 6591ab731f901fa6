// The Fisher information of what blocks give, on stories260K and children's stories.
#include "training/block_fisher.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "tests/io/temporary_folder.h"
#include "tests/training/stories.h"

namespace nibble {
namespace {

class BlockFisherTest : public StoriesTest {
 protected:
  void SetUp() override {
    StoriesTest::SetUp();
    if (IsSkipped()) return;
    const TextData text = stories(400000);
    for (int64_t row = 0; row < 64; row += 2) batches_.push_back(text.train.at({row, row + 1}));
  }
  std::vector<torch::Tensor> fisher(uint64_t seed) {
    std::vector<torch::Tensor> all(teacher_->shape().num_layers);
    const auto load = [this](const ModelPart& part) {
      return load_model(*source_, torch::kCPU, part);
    };
    visit_block_fisher(load, teacher_->shape(), batches_, seed, folder_.path(),
                       [&](int64_t block, const torch::Tensor& fisher) { all[block] = fisher; });
    return all;
  }
  /// The mean KL divergence where what leaves `block` is off by `share` of its norm at each
  /// position, along `direction` [D] or against it, which chance says.
  double kl_of_error(int64_t block, const torch::Tensor& direction, double share) {
    const torch::NoGradGuard no_grad;
    torch::manual_seed(1);
    double sum = 0;
    for (const Batch& batch : batches_) {
      const torch::Tensor x = part(0, block + 1)->blocks(teacher_->embed(batch), batch);
      const torch::Tensor sign = 2 * torch::randint(2, {x.size(0), 1}, torch::kFloat32) - 1;
      const torch::Tensor off = share * sign * x.norm(2, {1}, /*keepdim=*/true) * direction;
      sum += torch::kl_div(log_probs(block, x + off, batch), log_probs(block, x, batch),
                           at::Reduction::Sum, /*log_target=*/true)
                 .item<double>() /
             static_cast<double>(x.size(0));
    }
    return sum / static_cast<double>(batches_.size());
  }

  std::vector<Batch> batches_;
  TemporaryFolder folder_;

 private:
  std::unique_ptr<Model> part(int64_t first, int64_t count) {
    return load_model(*source_, torch::kCPU, {first, count, false});
  }
  torch::Tensor log_probs(int64_t block, const torch::Tensor& x, const Batch& batch) {
    const int64_t left = teacher_->shape().num_layers - block - 1;
    const torch::Tensor last = left > 0 ? part(block + 1, left)->blocks(x, batch) : x;
    return torch::log_softmax(teacher_->logits_of(teacher_->finish(last)), -1);
  }
};

// To second order, the KL divergence of an error e is e^T F e / 2: along the directions that F
// finds the dearest and the cheapest, it is in the ratio of their eigenvalues.
TEST_F(BlockFisherTest, SaysWhatAnErrorCosts) {
  const std::vector<torch::Tensor> all = fisher(1);
  ASSERT_EQ(static_cast<int64_t>(all.size()), teacher_->shape().num_layers);
  for (int64_t block = 0; block < teacher_->shape().num_layers; ++block) {
    const auto [values, vectors] = at::linalg_eigh(all[block]);
    EXPECT_NEAR(values.mean().item<double>(), 1, 1e-4);
    const int64_t dear = values.size(0) - 1, cheap = values.size(0) / 2;
    const double wanted = values[dear].item<double>() / values[cheap].item<double>();
    const double found = kl_of_error(block, vectors.select(1, dear), 0.02) /
                         kl_of_error(block, vectors.select(1, cheap), 0.02);
    EXPECT_GT(wanted, 2) << block;
    // 8,192 drawn tokens find an eigenvalue to a tenth or so.
    EXPECT_NEAR(found / wanted, 1, 0.3) << block;
  }
}

TEST_F(BlockFisherTest, TheSeedDrawsTheTokens) {
  const std::vector<torch::Tensor> one = fisher(1), again = fisher(1), other = fisher(2);
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_TRUE(at::equal(one[i], again[i])) << i;
    EXPECT_FALSE(at::equal(one[i], other[i])) << i;
  }
  EXPECT_EQ(folder_.num_files(), 0u);
}

}  // namespace
}  // namespace nibble
