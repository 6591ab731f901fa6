// The teacher's answers on disk: what is in the file is what the teacher says, a file of something
// else is noticed by name, and one that was tampered with is never believed.
#include "training/teacher_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "io/atomic_file.h"
#include "model/model.h"
#include "tests/io/temporary_folder.h"
#include "training/learner.h"
#include "training/memory_estimate.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

const std::string kModel =
    std::string(NIBBLE_SOURCE_DIR) + "/../shared/data/models/stories260K/stories260K-f32.v3.gguf";
constexpr int64_t kLength = 32;

class TeacherCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(kModel)) GTEST_SKIP() << "no " << kModel;
    Progress::set_quiet(true);
    source_ = std::make_unique<GgufFile>(GgufFile::open(kModel));
    std::string text;
    for (int i = 0; i < 60; ++i)
      text += concat("Lily saw ", i, " birds in the park. They were happy and went home.\n");
    write_file(folder_.file("text.txt"), text);
    options_.data.files = {folder_.file("text.txt")};
    options_.data.sequence_length = kLength;
    options_.data.held_out = 0.2;
    options_.batch_tokens = options_.micro_batch_tokens = 2 * kLength;
    options_.loss.teacher_top_k = 8;
    options_.loss.chunk_positions = 20;
    load();
  }
  void load() {
    data_ = TextData::load(options_.data, source_->metadata(), options_.seed);
    held_out_ = {data_.held_out.at({0}), data_.held_out.at({1, 2})};
  }
  TeacherCache open(std::vector<int64_t> rows = {0, 3, 4}) const {
    return {*source_, options_, {&data_, std::move(rows), &held_out_}, folder_.path()};
  }
  std::string refusal() const {
    try {
      open();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  std::string path() const { return folder_.file("teacher_cache.safetensors"); }

  TemporaryFolder folder_;
  std::unique_ptr<GgufFile> source_;
  TrainOptions options_;
  TextData data_;
  std::vector<Batch> held_out_;
};

TEST_F(TeacherCacheTest, HoldsWhatTheTeacherSays) {
  const TeacherCache cache = open();
  EXPECT_GT(cache.asked_bytes(), 0);
  const std::unique_ptr<Model> teacher = load_model(*source_);
  const TopKRecords layout(8, 512);
  const auto expect_said = [&](const torch::Tensor& records, const Batch& batch) {
    const torch::NoGradGuard no_grad;
    const torch::Tensor logs = at::log_softmax(teacher->logits(batch).flatten(0, 1), 1);
    ASSERT_EQ(records.size(0), logs.size(0));
    for (int64_t i = 0; i < logs.size(0); ++i) {
      const TopOutcomes outcomes = layout.decode(
          static_cast<const std::byte*>(records.const_data_ptr()) + i * layout.bytes());
      for (size_t j = 0; j < outcomes.ids.size(); ++j)  // float16 rounds distances below 32 by 2^-7
        EXPECT_NEAR(outcomes.logs[j], logs[i][outcomes.ids[j]].item<float>(), 1.0 / 128);
    }
  };
  expect_said(cache.records({4, 0}), data_.train.at({4, 0}));
  expect_said(cache.held_out(0), held_out_[0]);
  expect_said(cache.held_out(1), held_out_[1]);
  EXPECT_THROW(cache.records({1}), Error);
}

TEST_F(TeacherCacheTest, AStreamedTeacherSaysTheSameInLessMemory) {
  const TeacherCache whole = open();
  const torch::Tensor records = whole.records({0, 3, 4}).clone();
  fs::remove(path());
  const int64_t bytes = asking_bytes(*source_, options_);
  options_.stream_teacher = true;
  EXPECT_LT(asking_bytes(*source_, options_), bytes);
  const TeacherCache streamed = open();
  EXPECT_GT(streamed.asked_bytes(), 0);
  EXPECT_TRUE(at::equal(streamed.records({0, 3, 4}), records));
}

TEST_F(TeacherCacheTest, AsksOnce) {
  const torch::Tensor first = open().records({3});
  const auto written = fs::last_write_time(path());
  const TeacherCache again = open();
  EXPECT_EQ(again.asked_bytes(), 0);
  EXPECT_EQ(fs::last_write_time(path()), written);
  EXPECT_TRUE(at::equal(again.records({3}), first));
  EXPECT_EQ(open({4}).asked_bytes(), 0);     // fewer sequences
  EXPECT_GT(open({1, 4}).asked_bytes(), 0);  // another one
  EXPECT_GT(open().asked_bytes(), 0);
}

TEST_F(TeacherCacheTest, AFileOfSomethingElseIsMadeAnewOrRefusedByName) {
  open();
  const std::string there = read_file(path());
  const auto differs = [&](const std::string& what, const std::function<void()>& change) {
    const TrainOptions before = options_;
    write_file(path(), there);
    change();
    load();
    EXPECT_GT(open().asked_bytes(), 0) << what;
    EXPECT_EQ(open().asked_bytes(), 0) << what;
    write_file(path(), there);
    options_.loss.teacher_cache = path();
    EXPECT_NE(refusal().find(what), std::string::npos) << refusal();
    EXPECT_EQ(read_file(path()), there) << "a file that was named was replaced";
    options_ = before;
    load();
  };
  differs("is of teacher_top_k 8, wanted 9", [&] { options_.loss.teacher_top_k = 9; });
  differs("is of text ", [&] { options_.data.held_out = 0.3; });
  differs("is of dtype float32, wanted bfloat16", [&] { options_.dtype = "bfloat16"; });
  differs("is of teacher ", [&] {
    options_.teacher = folder_.file("other.gguf");
    std::string bytes = read_file(kModel);
    bytes.back() = static_cast<char>(bytes.back() ^ 1);  // of the last weight
    write_file(options_.teacher, bytes);
  });
  EXPECT_EQ(open().asked_bytes(), 0);
}

TEST_F(TeacherCacheTest, ADamagedFileIsNotBelieved) {
  open();
  const std::string sound = read_file(path());
  options_.loss.teacher_cache = path();
  for (const size_t at : {size_t{0}, size_t{60}, sound.size() / 2, sound.size() - 1}) {
    std::string bad = sound;
    bad[at] = static_cast<char>(bad[at] ^ 4);
    write_file(path(), bad);
    EXPECT_NE(refusal(), "") << "byte " << at;
  }
  for (const size_t size : {size_t{0}, size_t{7}, size_t{200}, sound.size() - 1}) {
    write_file(path(), sound.substr(0, size));
    EXPECT_NE(refusal(), "") << size << " bytes";
  }
  write_file(path(), sound);
  EXPECT_EQ(refusal(), "");
}

// Written with a checksum, as whoever means harm would.
TEST_F(TeacherCacheTest, AFileThatLiesIsRefused) {
  open();
  const auto lie = [&](const std::string& name,
                       const std::function<void(SafetensorsEntry&)>& change) {
    const SafetensorsFile file = SafetensorsFile::open(path());
    std::vector<SafetensorsEntry> entries;
    for (SafetensorsEntry entry : file.entries()) {
      if (entry.name == kChecksumEntry) continue;
      if (entry.name == name) change(entry);
      entries.push_back(entry);
    }
    options_.loss.teacher_cache = folder_.file("lie.safetensors");
    write_safetensors(options_.loss.teacher_cache, entries, file.metadata(), {.checksum = true});
    return refusal();
  };
  const std::vector<std::byte> zeros(1 << 20);
  const auto shaped = [&](std::vector<int64_t> shape, const std::string& dtype, int64_t size) {
    return [=, &zeros](SafetensorsEntry& entry) {
      int64_t bytes = size;
      for (const int64_t each : shape) bytes *= each;
      entry.dtype = dtype;
      entry.shape = shape;
      entry.data = std::span(zeros).first(bytes);
    };
  };
  EXPECT_NE(lie("records", shaped({64, 36}, "U8", 1)).find("entry 'records'"), std::string::npos);
  EXPECT_NE(lie("records", shaped({96, 9}, "F32", 4)).find("entry 'records'"), std::string::npos);
  EXPECT_NE(lie("held_out", shaped({1, 36}, "U8", 1)).find("entry 'held_out'"), std::string::npos);
  EXPECT_NE(lie("sequences", shaped({3}, "I64", 8)).find("do not ascend"), std::string::npos);
  EXPECT_NE(lie("sequences", shaped({3}, "F64", 8)).find("entry 'sequences'"), std::string::npos);
  // Right in shape and no records: noticed by whoever reads them.
  EXPECT_EQ(lie("records", shaped({96, 36}, "U8", 1)), "");
  const torch::Tensor records = open().records({3});
  EXPECT_THROW(TopKRecords(8, 512).decode(static_cast<const std::byte*>(records.const_data_ptr())),
               Error);
  const auto cost_of_lie = [&](std::vector<int64_t> shape) {
    EXPECT_EQ(lie("held_out_states", shaped(std::move(shape), "F32", 4)), "");
    const GgufFile& file = *source_;
    QuantOptions unquantized;
    unquantized.type = "none";
    Student student(load_model(file), nullptr, unquantized);
    EXPECT_THROW(open().cost(student, file, options_), Error);
  };
  cost_of_lie({96, 63});
  cost_of_lie({40, 64});  // ends within the second batch
  cost_of_lie({6144});
}

TEST_F(TeacherCacheTest, SaysWhatIsHidden) {
  PlanOptions plan_options;
  plan_options.type_name = "Q4_0";
  const Plan plan = make_plan(*source_, plan_options);
  Student student(load_model(*source_), &plan, options_.quant);
  const TopKCost some = open().cost(student, *source_, options_);
  options_.loss.teacher_top_k = 512;
  const TopKCost all = open().cost(student, *source_, options_);
  EXPECT_EQ(some.positions, 3 * kLength);
  EXPECT_EQ(all.beyond, 0);
  // The same student and teacher, the sums of other calls.
  EXPECT_NEAR(all.kl, some.kl, 1e-6);
  EXPECT_NEAR(all.kl_seen, all.kl, 1e-4);  // float16
  EXPECT_GT(some.beyond, 0.001);
  EXPECT_LT(some.beyond, 0.9);
  EXPECT_LT(some.kl_seen, 0.99 * some.kl);
  EXPECT_GT(some.kl_seen, 0);
}

TEST(SequencesOfDraws, AreThoseThatStepsRead) {
  PackedData data;
  data.tokens = torch::zeros({10, 4}, torch::kInt64);
  EXPECT_EQ(sequences_of_draws(3, 0, data), std::vector<int64_t>());
  EXPECT_EQ(sequences_of_draws(3, 25, data).size(), 10u);
  for (const bool grouped : {false, true}) {
    if (grouped) data.groups = {{0, 7, 1}, {7, 3, 5}};
    for (const int64_t draws : {1, 6, 10, 14, 40}) {
      std::vector<int64_t> wanted;
      for (int64_t step = 0; step < draws; ++step)
        wanted.push_back(step_sequences(3, step, 1, data)[0]);
      std::sort(wanted.begin(), wanted.end());
      wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
      EXPECT_EQ(sequences_of_draws(3, draws, data), wanted) << draws;
    }
  }
}

}  // namespace
}  // namespace nibble
