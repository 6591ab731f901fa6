// Activation checkpointing changes memory, and no bit of a gradient; and what a forward pass is
// said to keep is what it keeps.
#include "model/recompute.h"

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include "model/model.h"
#include "tests/io/temporary_folder.h"
#include "tests/model/tiny_llama.h"

namespace nibble {
namespace {

/// Live bytes of the tensors that this thread allocates while a guard holds it.
class LiveBytes : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    bytes += size;
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t bytes = 0;
};

class RecomputeTest : public testing::Test {
 protected:
  RecomputeTest() {
    // Wide enough that what is counted per position is more than what is not.
    tiny_.layers = 4;
    tiny_.width = 64;
    tiny_.feed_forward = 160;
    tiny_.write(path_);
    torch::manual_seed(3);
    batch_.tokens = torch::randint(50, {2, 32}, torch::kInt64);
    batch_.document = torch::zeros({2, 32}, torch::kInt64);
    batch_.document[0].slice(0, 11).fill_(1);
  }
  std::unique_ptr<Model> load(bool checkpointing) {
    auto model = load_model(GgufFile::open(path_));
    for (Weight* weight : model->weights()) weight->value.requires_grad_(true);
    model->set_activation_checkpointing(checkpointing);
    return model;
  }
  /// What is alive after the forward pass and was not before.
  int64_t kept_bytes(Model& model) {
    model.hidden(batch_);  // makes the table of rotations
    const auto live = std::make_shared<LiveBytes>();
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, live);
    const torch::Tensor hidden = model.hidden(batch_);
    return live->bytes;
  }

  TemporaryFolder folder_;
  std::string path_ = folder_.file("tiny.gguf");
  TinyLlama tiny_;
  Batch batch_;
};

class Gradients : public RecomputeTest, public testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(RecomputeTest, Gradients,
                         testing::Values("llama", "qwen35", "qwen3next", "gpt-oss"));

TEST_P(Gradients, AreTheSameBits) {
  tiny_.take_architecture(GetParam());
  tiny_.write(path_);
  const auto plain = load(false), checkpointed = load(true);
  // An embedding that is not trained: the first block's input then has no gradient, its weights do.
  for (Model* model : {plain.get(), checkpointed.get()})
    model->find_weight("token_embd.weight")->value.requires_grad_(false);
  for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
    const torch::Tensor a = plain->logits(batch_), b = checkpointed->logits(batch_);
    ASSERT_TRUE(torch::equal(a, b));
    const torch::Tensor grad = torch::randn_like(a);
    a.backward(grad);
    b.backward(grad);
  }
  for (const Weight* weight : plain->weights()) {
    const torch::Tensor gradient = checkpointed->find_weight(weight->name)->value.grad();
    ASSERT_EQ(gradient.defined(), weight->name != "token_embd.weight") << weight->name;
    if (!gradient.defined()) continue;
    EXPECT_TRUE(torch::equal(gradient, weight->value.grad())) << weight->name;
  }
}

TEST_F(RecomputeTest, TheEmbeddingGetsItsGradientThroughTheBlocks) {
  const auto plain = load(false), checkpointed = load(true);
  for (Model* model : {plain.get(), checkpointed.get()}) model->logits(batch_).sum().backward();
  EXPECT_TRUE(torch::equal(plain->find_weight("token_embd.weight")->value.grad(),
                           checkpointed->find_weight("token_embd.weight")->value.grad()));
}

class KeptBytes : public RecomputeTest, public testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(RecomputeTest, KeptBytes,
                         testing::Values("llama", "mixtral", "qwen2", "qwen3", "qwen3moe", "gemma2",
                                         "gemma3", "smollm3", "phi3", "granite", "qwen35",
                                         "qwen35moe", "qwen3next", "gpt-oss"));

TEST_P(KeptBytes, ActivationBytesAreWhatIsKept) {
  tiny_.take_architecture(GetParam());
  tiny_.write(path_);
  // What a gated delta net keeps is counted for documents of many chunks: the first of them has no
  // state to look at.
  const bool recurrent = tiny_.is_hybrid();
  if (recurrent) batch_ = {torch::randint(50, {2, 512}, torch::kInt64), {}};
  for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
    const ActivationBytes expected = activation_bytes(GgufFile::open(path_), dtype);
    ASSERT_EQ(expected.num_blocks, tiny_.layers);
    const int64_t positions = batch_.tokens.numel();
    const int64_t ends = 2 * tiny_.width * static_cast<int64_t>(sizeof(float));  // last norm
    for (const bool checkpointing : {false, true}) {
      const auto model = load(checkpointing);
      model->set_compute_dtype(dtype);
      const int64_t each = checkpointing ? expected.block_input : expected.block;
      const double ratio = static_cast<double>(kept_bytes(*model)) /
                           static_cast<double>(positions * (expected.num_blocks * each + ends));
      // Not counted: the norms' inverse roots, rotations and positions, a few numbers a position
      // beside some hundreds, of which activation checkpointing keeps only 64 a block.
      EXPECT_GT(ratio, recurrent ? 0.96 : 0.99) << dtype << checkpointing;
      EXPECT_LT(ratio, checkpointing ? 1.3 : 1.05) << dtype << checkpointing;
    }
  }
}

}  // namespace
}  // namespace nibble
