// Diagnosis of finished runs on stories260K (a llama of 260 thousand parameters): its figures
// beside those worked out from the files by hand, and trainings that go wrong in each way that it
// warns of.
#include "training/diagnosis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "base/float16.h"
#include "base/progress.h"
#include "io/atomic_file.h"
#include "quant/format/rows.h"
#include "tests/io/temporary_folder.h"
#include "tests/model/tiny_llama.h"
#include "tests/model/tokenizer_metadata.h"
#include "tests/training/stopper.h"
#include "training/checkpoint.h"
#include "training/data.h"
#include "training/model_file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

const std::string kModel =
    std::string(NIBBLE_SOURCE_DIR) + "/../shared/data/models/stories260K/stories260K-f32.v3.gguf";

class DiagnosisTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(kModel)) GTEST_SKIP() << "no " << kModel;
    Progress::set_quiet(true);
    open(kModel, "Q4_0");
    write_text(/*other_end=*/false);
    options_.data.files = {folder_.file("text.txt")};
    options_.data.sequence_length = 64;
    options_.data.held_out = 0.1;
    options_.batch_tokens = options_.micro_batch_tokens = 128;
    options_.max_tokens = 128 * 20;
    options_.evaluate_every = 5;
    options_.optimizer.learning_rate = 3e-4;
    options_.optimizer.scale_learning_rate = 1e-3;
  }
  void open(const std::string& model, const std::string& type) {
    source_ = std::make_unique<GgufFile>(GgufFile::open(model));
    PlanOptions plan;
    plan.type_name = type;
    plan_ = make_plan(*source_, plan);
  }
  /// Sentences to learn; the end, which is held out, is of another kind if wanted.
  void write_text(bool other_end) {
    const char* things[] = {"dog", "tree", "boat", "cake", "bird", "hat", "ball"};
    std::string text;
    for (int i = 0; i < 300; ++i)
      text += std::string("Once upon a time, Lily saw a big ") + things[i * i % 7] + ".\n";
    for (int i = 0; other_end && i < 40; ++i)
      text += "The " + std::to_string(i * 7919 % 1000) + " ran far.\n";
    write_file(folder_.file("text.txt"), text);
  }
  std::string run_dir() const { return folder_.file("run"); }
  TrainResult train(bool resume = false) {
    return result_ = nibble::train(*source_, plan_, options_, run_dir(), resume);
  }
  Diagnosis diagnose() const { return *diagnose_run(*source_, options_, run_dir(), result_); }
  Diagnosis train_and_diagnose() {
    train();
    return diagnose();
  }
  /// The only warning, or all of them in one.
  static std::string warning_of(const Diagnosis& diagnosis) {
    std::string all;
    for (const std::string& warning : diagnosis.warnings) all += warning + "\n";
    return all;
  }

  TemporaryFolder folder_;
  std::unique_ptr<GgufFile> source_;
  Plan plan_;
  TrainOptions options_;
  TrainResult result_;
};

const TensorDiagnosis& tensor_of(const Diagnosis& diagnosis, const std::string& name) {
  const auto found =
      std::find_if(diagnosis.tensors.begin(), diagnosis.tensors.end(),
                   [&](const TensorDiagnosis& tensor) { return tensor.tensor == name; });
  EXPECT_NE(found, diagnosis.tensors.end()) << name;
  return *found;
}

std::vector<float> decoded(const GgufTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_weights()));
  decode_tensor(tensor.type, tensor.data, values);
  return values;
}

double relative_error(const std::vector<float>& found, const std::vector<float>& wanted) {
  double noise = 0, signal = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    noise += std::pow(double{found[i]} - wanted[i], 2);
    signal += std::pow(double{wanted[i]}, 2);
  }
  return noise / signal;
}

/// Nibble by nibble: a block is a float16 and 16 bytes of two codes each.
int64_t moved_nibbles(std::span<const std::byte> a, std::span<const std::byte> b) {
  int64_t moved = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (i % 18 < 2) continue;
    moved += (a[i] & std::byte{15}) != (b[i] & std::byte{15});
    moved += a[i] >> 4 != b[i] >> 4;
  }
  return moved;
}

TEST_F(DiagnosisTest, FiguresAreThoseOfTheFiles) {
  const Diagnosis diagnosis = train_and_diagnose();
  EXPECT_EQ(diagnosis.step, result_.best_step);
  EXPECT_GT(diagnosis.tokens, 0);
  const std::string name = "blk.1.ffn_up.weight";
  const TensorDiagnosis& found = tensor_of(diagnosis, name);
  const GgufFile start = GgufFile::open(run_start_path(run_dir()));
  const Checkpoint checkpoint = load_checkpoint(result_.best_checkpoint);
  const TrainedTensor& trained = *checkpoint.find(name);
  const std::vector<std::byte> blocks = restore_quantizer(trained).blocks();

  EXPECT_EQ(found.type, "Q4_0");
  EXPECT_EQ(found.weights, source_->tensor(name).num_weights());
  EXPECT_EQ(found.groups, found.weights / 32);
  EXPECT_EQ(found.moved, moved_nibbles(start.tensor(name).data, blocks));
  EXPECT_GT(found.moved, 0);
  std::vector<float> shipped(static_cast<size_t>(found.weights));
  decode_tensor(trained.type, blocks, shipped);
  const std::vector<float> original = decoded(source_->tensor(name));
  // Sums of the same numbers in another order.
  EXPECT_NEAR(found.weight_error, relative_error(shipped, original), 1e-12);
  EXPECT_NEAR(found.weight_error_start, relative_error(decoded(start.tensor(name)), original),
              1e-12);

  int64_t clamped = 0;
  const float* masters = trained.weights.const_data_ptr<float>();
  for (int64_t i = 0; i < found.weights; ++i) {
    uint16_t bits;
    std::memcpy(&bits, blocks.data() + i / 32 * 18, sizeof bits);
    const float q = std::nearbyint(masters[i] * (1.0f / float16_to_float(bits)));
    clamped += q < -8 || q > 7;
  }
  EXPECT_EQ(found.clamped, clamped);
}

// The output matrix: what enters it is what a forward pass returns.
TEST_F(DiagnosisTest, OutputErrorIsOfTheMatmul) {
  const Diagnosis diagnosis = train_and_diagnose();
  const torch::NoGradGuard no_grad;
  const std::unique_ptr<Model> model = load_model(*source_);
  const std::string name =
      model->find_weight("output.weight") ? "output.weight" : "token_embd.weight";
  const TextData data =
      TextData::load(options_.data, *Tokenizer::from_metadata(source_->metadata()), options_.seed);
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < data.held_out.num_sequences(); ++row) rows.push_back(row);
  ASSERT_EQ(diagnosis.tokens, std::ssize(rows) * 64);  // all of so short a text
  const torch::Tensor x = model->hidden(data.held_out.at(rows)).flatten(0, 1).to(torch::kFloat64);
  const torch::Tensor original = model->find_weight(name)->value.to(torch::kFloat64);
  const Checkpoint checkpoint = load_checkpoint(result_.best_checkpoint);
  torch::Tensor shipped = torch::empty(original.sizes());
  restore_quantizer(*checkpoint.find(name)).materialize(shipped);
  const auto squared = [&](const torch::Tensor& matrix) {
    return at::matmul(x, matrix.t()).square().sum().item<double>();
  };
  const double wanted = squared(shipped.to(torch::kFloat64) - original) / squared(original);
  // float32 products of 64 terms against float64 ones.
  EXPECT_NEAR(tensor_of(diagnosis, name).output_error / wanted, 1, 1e-4);
  for (const TensorDiagnosis& tensor : diagnosis.tensors) {
    if (tensor.tensor == "token_embd.weight" && tensor.tensor != name) continue;  // no matmul
    EXPECT_GT(tensor.output_error_start, 0) << tensor.tensor;
    EXPECT_GT(tensor.output_error, 0) << tensor.tensor;
  }
}

TEST_F(DiagnosisTest, AGoodTrainingHasNoWarningAndAFile) {
  const Diagnosis diagnosis = train_and_diagnose();
  EXPECT_EQ(warning_of(diagnosis), "");
  const std::string text = read_file(run_dir() + "/diagnosis.json");
  EXPECT_EQ(text, diagnosis_json(diagnosis));
  const auto json = nlohmann::json::parse(text);
  EXPECT_EQ(json["tensors"].size(), diagnosis.tensors.size());
  EXPECT_GT(json["total"]["codes_moved"], 0.0);
  EXPECT_LT(json["total"]["codes_moved"], 1.0);
  // A run that is over is left as it is and gives the same once more.
  train(/*resume=*/true);
  EXPECT_EQ(diagnosis_json(diagnose()), text);
}

TEST_F(DiagnosisTest, WithoutAStartThereIsNone) {
  train();
  fs::remove(run_start_path(run_dir()));
  EXPECT_FALSE(diagnose_run(*source_, options_, run_dir(), result_));
  EXPECT_FALSE(fs::exists(run_dir() + "/diagnosis.json"));
  open(kModel, "Q8_0");  // of another run in the same folder
  write_model_file(run_start_path(run_dir()), *source_, plan_, {});
  EXPECT_FALSE(diagnose_run(*source_, options_, run_dir(), result_));
}

TEST_F(DiagnosisTest, WithoutHeldOutTextThereAreNoOutputErrors) {
  options_.data.held_out = 0;
  const Diagnosis diagnosis = train_and_diagnose();
  EXPECT_EQ(diagnosis.tokens, 0);
  EXPECT_TRUE(nlohmann::json::parse(diagnosis_json(diagnosis))["total"]["output_error"].is_null());
  EXPECT_EQ(diagnosis_line(diagnosis).find("outputs"), std::string::npos);
}

TEST_F(DiagnosisTest, WarnsWhenNoCodeMoves) {
  options_.optimizer.learning_rate = options_.optimizer.scale_learning_rate = 5e-9;
  const Diagnosis diagnosis = train_and_diagnose();
  ASSERT_EQ(diagnosis.warnings.size(), 1u) << warning_of(diagnosis);
  EXPECT_NE(warning_of(diagnosis).find("no code moved in"), std::string::npos);
  EXPECT_NE(warning_of(diagnosis).find("raise it"), std::string::npos);
  EXPECT_EQ(warning_of(diagnosis).find("float32 masters"), std::string::npos);
  const TensorDiagnosis all = diagnosis.total();
  EXPECT_NEAR(all.output_error, all.output_error_start, 1e-6 * all.output_error);
  options_.optimizer.learning_rate = 1e-12;  // below any weight's spacing of float32
  EXPECT_NE(warning_of(train_and_diagnose()).find("float32 masters even round"), std::string::npos);
}

// Step 0 is where GPTQ left the codes, which no rounding of the source gives.
TEST_F(DiagnosisTest, TheStartIsStepZeroWhateverItIs) {
  options_.quant.initial = "gptq";
  options_.optimizer.learning_rate = options_.optimizer.scale_learning_rate = 1e-12;
  const Diagnosis diagnosis = train_and_diagnose();
  EXPECT_LT(share_of(diagnosis.total().moved, diagnosis.total().weights), 1e-5);
}

TEST_F(DiagnosisTest, WarnsOfOverfittingAndStopsEarly) {
  write_text(/*other_end=*/true);
  options_.loss.kind = "ce";
  options_.max_tokens = 128 * 60;
  options_.optimizer.learning_rate = 3e-3;
  const std::string warning = warning_of(train_and_diagnose());
  EXPECT_EQ(result_.steps, 60);
  EXPECT_NE(warning.find("the held-out loss turned up after step"), std::string::npos) << warning;
  EXPECT_NE(warning.find("early_stop: "), std::string::npos) << warning;
  const int64_t best = result_.best_step;

  options_.early_stop = 3;
  train();
  EXPECT_EQ(result_.best_step, best);
  EXPECT_EQ(result_.steps, best + 3 * 5);
  EXPECT_TRUE(result_.complete);
  EXPECT_EQ(warning_of(diagnose()).find("early_stop"), std::string::npos);
}

TEST_F(DiagnosisTest, WarnsWhenNoStepIsBetterThanTheStart) {
  options_.optimizer.learning_rate = 0.1;
  options_.optimizer.warmup = 0;
  std::string warning = warning_of(train_and_diagnose());
  EXPECT_NE(warning.find("start.gguf of the run is the better file. Lower optimizer.learning_rate"),
            std::string::npos)
      << warning;
  options_.evaluate_every = 0;  // the end alone, and the start
  warning = warning_of(train_and_diagnose());
  EXPECT_NE(warning.find("at its lowest, at step 20"), std::string::npos) << warning;
  options_.data.held_out = 0;
  warning = warning_of(train_and_diagnose());
  EXPECT_EQ(warning.find("start.gguf"), std::string::npos) << warning;
}

// Of the evaluations that count, some were before the run was stopped.
TEST_F(DiagnosisTest, EarlyStopIsThatOfARunThatNeverStopped) {
  write_text(/*other_end=*/true);
  options_.max_tokens = 128 * 400;
  options_.optimizer.learning_rate = 0.1;  // drives the held-out loss up from the start
  options_.optimizer.warmup = 0;
  options_.early_stop = 20;
  train();
  const int64_t steps = result_.steps, best = result_.best_step;
  ASSERT_EQ(steps, best + 20 * 5);
  fs::remove_all(run_dir());
  {
    const Stopper stopper(run_dir() + "/metrics.jsonl", static_cast<size_t>(1 + best + 36));
    train();
  }
  ASSERT_FALSE(result_.complete);
  train(/*resume=*/true);
  EXPECT_EQ(result_.steps, steps);
}

TEST_F(DiagnosisTest, WarnsOfClampedWeights) {
  options_.quant.scales = "frozen";
  options_.optimizer.learning_rate = 0.02;
  options_.evaluate_every = 0;  // what ships is the end
  options_.optimizer.warmup = 0;
  const std::string warning = warning_of(train_and_diagnose());
  EXPECT_NE(warning.find("of the weights left the range of their scales"), std::string::npos)
      << warning;
  EXPECT_NE(warning.find("lower optimizer.learning_rate"), std::string::npos) << warning;
  EXPECT_EQ(warning.find("scale_learning_rate"), std::string::npos) << warning;
}

TEST_F(DiagnosisTest, WarnsOfScalesAtTheirFloor) {
  options_.optimizer.scale_learning_rate = 0.5;
  options_.evaluate_every = 0;  // what ships is the end
  options_.optimizer.warmup = 0;
  const Diagnosis diagnosis = train_and_diagnose();
  EXPECT_NE(warning_of(diagnosis).find("have a scale at its floor"), std::string::npos)
      << warning_of(diagnosis);
  EXPECT_EQ(diagnosis.total().floored_start, 0);
}

// In a K-quant a group loses its step through its own sub-scale too.
TEST_F(DiagnosisTest, CountsSubScalesThatBecameZero) {
  TinyLlama tiny;
  tiny.layers = 1;
  tiny.width = tiny.feed_forward = 256;
  tiny.vocab = 259;
  tiny.extra = spm_metadata({});
  tiny.write(folder_.file("tiny.gguf"));
  open(folder_.file("tiny.gguf"), "Q2_K");
  options_.optimizer.scale_learning_rate = 0.5;
  options_.evaluate_every = 0;  // what ships is the end
  options_.optimizer.warmup = 0;
  const Diagnosis diagnosis = train_and_diagnose();
  const TensorDiagnosis& found = tensor_of(diagnosis, "blk.0.ffn_up.weight");
  ASSERT_EQ(found.type, "Q2_K");
  EXPECT_EQ(found.groups, 256 * 256 / 16);
  // By the bytes: sub-scales are the low nibbles of a block's first 16 of 84 bytes; d is at 80.
  const Checkpoint checkpoint = load_checkpoint(result_.best_checkpoint);
  const std::vector<std::byte> blocks =
      restore_quantizer(*checkpoint.find("blk.0.ffn_up.weight")).blocks();
  int64_t floored = 0;
  for (size_t block = 0; block < blocks.size(); block += 84) {
    uint16_t bits;
    std::memcpy(&bits, blocks.data() + block + 80, sizeof bits);
    const bool at_floor = (bits & 0x7fff) <= 1;  // 2^-24 is the smallest float16
    for (size_t group = 0; group < 16; ++group)
      floored += at_floor || (blocks[block + group] & std::byte{15}) == std::byte{0};
  }
  EXPECT_EQ(found.floored, floored);
  EXPECT_GT(found.floored, found.floored_start);
}

}  // namespace
}  // namespace nibble
