// Weights that are made on use: the values, gradients and hooks of weights that lie in memory, and
// NaN to whoever forgets to ask for values.
#include "model/made_weight.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "model/experts.h"
#include "model/layers.h"
#include "model/model.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

const std::string kModel =
    std::string(NIBBLE_SOURCE_DIR) + "/../shared/data/models/stories260K/stories260K-f32.v3.gguf";

torch::Tensor made_from(const torch::Tensor& values) {
  return made_weight(values.sizes(), torch::kCPU, [values](int64_t first, torch::Tensor& out) {
    out.copy_(values.view({-1, values.size(-1)}).narrow(0, first, out.size(0)));
  });
}

TEST(MadeWeight, IsNanButToWhoAsks) {
  const torch::Tensor values = torch::randn({7, 5}), made = made_from(values);
  EXPECT_TRUE(is_made(made));
  EXPECT_FALSE(is_made(values));
  EXPECT_EQ(made.storage().nbytes(), sizeof(float));
  EXPECT_TRUE(at::isnan(made).all().item<bool>());
  EXPECT_TRUE(at::equal(values_of(made), values));
  EXPECT_TRUE(at::equal(values_of(made.detach()), values));
  EXPECT_TRUE(at::equal(values_of(made, torch::kBFloat16), values.to(torch::kBFloat16)));
  const torch::Tensor rows = torch::tensor({6, 0, 6}, torch::kInt64);
  EXPECT_TRUE(at::equal(rows_of(made, rows), values.index_select(0, rows)));
}

TEST(MadeWeight, IsCastInPiecesWithAllOfIt) {
  // Rows of a length that 2^22 weights do not divide, and more of them than one piece has.
  const torch::Tensor values = torch::randn({4500, 1001});
  EXPECT_TRUE(
      at::equal(values_of(made_from(values), torch::kBFloat16), values.to(torch::kBFloat16)));
}

TEST(MadeWeight, StacksAreMadeRowByRow) {
  const torch::Tensor values = torch::randn({3, 4, 6});
  EXPECT_TRUE(at::equal(values_of(made_from(values)), values));
  for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16})
    EXPECT_TRUE(at::equal(matrix_of(made_from(values), 1, dtype), values[1].to(dtype)));
}

/// Calls forward(x, weight) for a weight with these values that is made on use and for one in
/// memory: results and gradients are the same bits.
template <class Forward>
void expect_same_gradients(const torch::Tensor& values, const torch::Tensor& input,
                           const Forward& forward) {
  torch::Tensor gradients[2], of_x[2], results[2];
  for (const bool made : {false, true}) {
    torch::Tensor weight = made ? made_from(values) : values.clone();
    weight.set_requires_grad(true);
    const torch::Tensor x = input.clone().requires_grad_(true), y = forward(x, weight);
    results[made] = y.detach();
    y.square().sum().backward();
    gradients[made] = weight.grad();
    of_x[made] = x.grad();
  }
  EXPECT_TRUE(at::equal(results[0], results[1]));
  EXPECT_TRUE(at::equal(gradients[0], gradients[1]));
  EXPECT_TRUE(at::equal(of_x[0], of_x[1]));
}

TEST(MadeWeight, HasTheGradientsOfOneInMemory) {
  const torch::Tensor tokens = torch::tensor({3, 1, 3}, torch::kInt64);
  for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16})
    expect_same_gradients(torch::randn({12, 8}), torch::linspace(-1, 1, 24).view({3, 8}),
                          [&](const torch::Tensor& x, const torch::Tensor& weight) {
                            return linear(x, weight, {}, dtype) +
                                   linear(embed_tokens(weight, tokens), weight, {}, dtype);
                          });
}

TEST(MadeWeight, ExpertsHaveTheGradientsOfThoseInMemory) {
  expect_same_gradients(torch::randn({3, 4, 6}), torch::linspace(-1, 1, 30).view({5, 6}),
                        [](const torch::Tensor& x, const torch::Tensor& weight) {
                          return project_experts(x, {2, 0, 3}, {weight}, torch::kFloat32)[0];
                        });
}

TEST(MadeWeight, AModelOfThemIsTheModel) {
  if (!fs::exists(kModel)) GTEST_SKIP() << "no " << kModel;
  const torch::NoGradGuard no_grad;
  Batch batch;
  batch.tokens = torch::arange(3, 35, torch::kInt64).view({2, 16});
  std::unique_ptr<Model> streamed;
  {
    const GgufFile file = GgufFile::open(kModel);
    streamed = load_model(file, torch::kCPU, {.on_use = true});
  }
  for (const Weight* weight : streamed->weights())
    EXPECT_EQ(is_made(weight->value), weight->value.dim() > 1) << weight->name;
  const std::unique_ptr<Model> loaded = load_model(GgufFile::open(kModel));
  for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
    streamed->set_compute_dtype(dtype);
    loaded->set_compute_dtype(dtype);
    EXPECT_TRUE(at::equal(streamed->logits(batch), loaded->logits(batch)));
  }
  streamed->keep_matrices_cast();
  EXPECT_TRUE(at::equal(streamed->copy()->logits(batch), loaded->copy()->logits(batch)));
}

}  // namespace
}  // namespace nibble
