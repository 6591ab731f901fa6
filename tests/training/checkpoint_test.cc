// What is saved is what is loaded; files that are no checkpoint are refused by name.
#include "training/checkpoint.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"

namespace nibble {
namespace {

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              ("nibble_checkpoint_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  static std::string error_of(const std::string& path) {
    try {
      load_checkpoint(path);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::filesystem::path folder_;
};

Checkpoint make_checkpoint() {
  torch::manual_seed(1);
  Checkpoint checkpoint;
  checkpoint.step = 12;
  checkpoint.tokens = 12'000'000'000;
  checkpoint.seed = 0xffff'ffff'ffff'fff1;
  checkpoint.seconds = 1.25;
  checkpoint.held_out_loss = 0.1;
  checkpoint.best_held_out_loss = 0.09;
  checkpoint.best_step = 10;
  checkpoint.options_json = R"({"seed":1})";
  checkpoint.plan.type_name = "Q4_0";
  checkpoint.plan.file_type = 2;
  checkpoint.plan.entries = {{"w", {64, 3}, GgmlType::kF32, GgmlType::kQ4_0, "Q4_0"},
                             {"norm", {64}, GgmlType::kF32, GgmlType::kF32, "not quantized: norm"}};
  FakeQuantizer quantizer("w", require_format(GgmlType::kQ4_0), ScaleMode::kLearned,
                          torch::randn({3, 64}), {}, EncodeMethod::kSearch);
  torch::Tensor materialized = torch::empty({3, 64});
  quantizer.materialize(materialized);
  TrainedTensor w;
  w.name = "w";
  w.type = GgmlType::kQ4_0;
  w.weights = quantizer.weights();
  w.scale_ratios = quantizer.scale_ratios() * 1.01;
  w.initial_scales = quantizer.initial_scales();
  w.materialized_hash =
      content_hash(materialized) | (uint64_t{1} << 63);  // no signed number holds it
  TrainedTensor norm;
  norm.name = "norm";
  norm.weights = torch::randn({64});
  checkpoint.tensors = {w, norm};
  checkpoint.moments["w:moment1"] = torch::randn({3, 64});
  checkpoint.moments["w:scale_ratios:moment2"] = torch::rand({3, 2});
  return checkpoint;
}

TEST_F(CheckpointTest, LoadsWhatWasSaved) {
  const Checkpoint saved = make_checkpoint();
  save_checkpoint(path("a.safetensors"), saved);
  const Checkpoint loaded = load_checkpoint(path("a.safetensors"));
  EXPECT_EQ(loaded.step, saved.step);
  EXPECT_EQ(loaded.tokens, saved.tokens);
  EXPECT_EQ(loaded.seed, saved.seed);
  EXPECT_EQ(loaded.seconds, saved.seconds);
  EXPECT_EQ(loaded.held_out_loss, saved.held_out_loss);
  EXPECT_EQ(loaded.best_held_out_loss, saved.best_held_out_loss);
  EXPECT_EQ(loaded.best_step, saved.best_step);
  EXPECT_EQ(loaded.options_json, saved.options_json);
  EXPECT_EQ(loaded.plan.to_json(), saved.plan.to_json());
  ASSERT_EQ(loaded.tensors.size(), 2u);
  for (const TrainedTensor& tensor : saved.tensors) {
    const TrainedTensor* found = loaded.find(tensor.name);
    ASSERT_NE(found, nullptr);
    EXPECT_EQ(found->type, tensor.type);
    EXPECT_EQ(found->mode, tensor.mode);
    EXPECT_EQ(found->materialized_hash, tensor.materialized_hash);
    EXPECT_TRUE(at::equal(found->weights, tensor.weights));
    EXPECT_EQ(found->scale_ratios.defined(), tensor.scale_ratios.defined());
    if (!tensor.scale_ratios.defined()) continue;
    EXPECT_TRUE(at::equal(found->scale_ratios, tensor.scale_ratios));
    EXPECT_TRUE(at::equal(found->initial_scales, tensor.initial_scales));
  }
  ASSERT_EQ(loaded.moments.size(), 2u);
  for (const auto& [name, moment] : saved.moments)
    EXPECT_TRUE(at::equal(loaded.moments.at(name), moment));
  EXPECT_EQ(loaded.find("nothing"), nullptr);
}

TEST_F(CheckpointTest, RestoresTheQuantizer) {
  const Checkpoint saved = make_checkpoint();
  save_checkpoint(path("a.safetensors"), saved);
  const Checkpoint loaded = load_checkpoint(path("a.safetensors"));
  EXPECT_EQ(restore_quantizer(*saved.find("w")).blocks(),
            restore_quantizer(*loaded.find("w")).blocks());
  EXPECT_THROW(restore_quantizer(*loaded.find("norm")), Error);
}

TEST_F(CheckpointTest, RefusesOtherFilesByName) {
  const torch::Tensor values = torch::ones({2});
  const std::span<const std::byte> bytes(
      reinterpret_cast<const std::byte*>(values.const_data_ptr<float>()), values.nbytes());
  write_safetensors(path("other.safetensors"), {{"w", "F32", {2}, bytes}}, {});
  EXPECT_NE(error_of(path("other.safetensors")).find("not a nibble checkpoint"), std::string::npos);
  EXPECT_NE(error_of(path("other.safetensors")).find("other.safetensors"), std::string::npos);

  const std::map<std::string, std::string> broken = {{"nibble.format", "1"},
                                                     {"nibble.state", "{\"step\": \"x\"}"}};
  write_safetensors(path("broken.safetensors"), {{"w", "F32", {2}, bytes}}, broken);
  EXPECT_NE(error_of(path("broken.safetensors")).find("checkpoint metadata"), std::string::npos);
  write_safetensors(path("later.safetensors"), {{"w", "F32", {2}, bytes}},
                    {{"nibble.format", "9"}});
  EXPECT_NE(error_of(path("later.safetensors")).find("layout 9"), std::string::npos);
  EXPECT_NE(error_of(path("none.safetensors")).find("none.safetensors"), std::string::npos);
}

/// A checkpoint's file, to be written again with a change.
struct Copy {
  explicit Copy(const std::string& path)
      : file(SafetensorsFile::open(path)), metadata(file.metadata()) {}
  void write(const std::string& path, const std::string& without, bool checksum) const {
    std::vector<SafetensorsEntry> entries;
    for (const SafetensorsEntry& entry : file.entries())
      if (entry.name != without && entry.name != kChecksumEntry) entries.push_back(entry);
    write_safetensors(path, entries, metadata, {.checksum = checksum});
  }
  SafetensorsFile file;
  std::map<std::string, std::string> metadata;
};

TEST_F(CheckpointTest, NamesAMissingTensor) {
  save_checkpoint(path("a.safetensors"), make_checkpoint());
  Copy(path("a.safetensors")).write(path("b.safetensors"), "norm", /*checksum=*/true);
  EXPECT_NE(error_of(path("b.safetensors")).find("no entry 'norm'"), std::string::npos);
}

TEST_F(CheckpointTest, NoticesEveryDamagedByte) {
  save_checkpoint(path("a.safetensors"), make_checkpoint());
  std::string bytes = read_file(path("a.safetensors"));
  const std::string damaged = path("damaged.safetensors");
  std::ofstream out(damaged, std::ios::binary);
  for (size_t at = 0; at < bytes.size(); ++at) {
    const char whole = bytes[at];
    bytes[at] = static_cast<char>(whole ^ (1 << at % 8));
    out.seekp(0);
    out << bytes << std::flush;
    EXPECT_EQ(error_of(damaged).rfind(damaged + ": ", 0), 0u) << "byte " << at;
    bytes[at] = whole;
  }
  EXPECT_NE(error_of(damaged).find("damaged"), std::string::npos);  // the last byte, of the sum
  out.seekp(0);
  out << bytes << std::flush;
  EXPECT_EQ(error_of(damaged), "");
}

TEST_F(CheckpointTest, ReadsTheLayoutWithoutChecksum) {
  save_checkpoint(path("a.safetensors"), make_checkpoint());
  Copy copy(path("a.safetensors"));
  copy.write(path("lost.safetensors"), "", /*checksum=*/false);
  EXPECT_NE(error_of(path("lost.safetensors")).find("this file none"), std::string::npos);
  copy.metadata["nibble.format"] = "1";
  copy.write(path("earlier.safetensors"), "", /*checksum=*/false);
  EXPECT_EQ(load_checkpoint(path("earlier.safetensors")).step, 12);
  copy.write(path("both.safetensors"), "", /*checksum=*/true);
  EXPECT_NE(error_of(path("both.safetensors")).find("this file one"), std::string::npos);
}

TEST_F(CheckpointTest, KeepsTheOneBefore) {
  Checkpoint checkpoint = make_checkpoint();
  for (int64_t step : {1, 2, 3}) {
    checkpoint.step = step;
    save_checkpoint(path("last.safetensors"), checkpoint, path("previous.safetensors"));
  }
  EXPECT_EQ(load_checkpoint(path("last.safetensors")).step, 3);
  EXPECT_EQ(load_checkpoint(path("previous.safetensors")).step, 2);
}

TEST_F(CheckpointTest, StaysReadableWhenItsFileIsReplaced) {
  Checkpoint checkpoint = make_checkpoint();
  save_checkpoint(path("a.safetensors"), checkpoint);
  const Checkpoint loaded = load_checkpoint(path("a.safetensors"));
  const torch::Tensor wanted = checkpoint.tensors[0].weights.clone();
  checkpoint.tensors[0].weights.zero_();
  save_checkpoint(path("a.safetensors"), checkpoint);
  EXPECT_TRUE(at::equal(loaded.tensors[0].weights, wanted));
}

}  // namespace
}  // namespace nibble
