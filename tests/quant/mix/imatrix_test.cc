// Importance matrices: both formats read, one written, and the catalogue of files that are refused.
#include "quant/mix/imatrix.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "base/error.h"
#include "tests/io/gguf_bytes.h"
#include "tests/io/temporary_folder.h"

namespace nibble {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::string raw_floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}
std::string dat_string(const std::string& text) {
  return raw<int32_t>(static_cast<int32_t>(text.size())) + text;
}
std::string dat_entry(const std::string& name, int32_t calls, const std::vector<float>& values) {
  return dat_string(name) + raw(calls) + raw<int32_t>(static_cast<int32_t>(values.size())) +
         raw_floats(values);
}
/// Two entries; what follows them is up to the test.
std::string dat_entries() {
  return raw<int32_t>(2) + dat_entry("blk.0.attn_q.weight", 4, {8.0f, 2.0f}) +
         dat_entry("blk.0.ffn_down.weight", 4, {1.0f, 0.0f, 3.0f});
}
std::string dat_end() { return raw<int32_t>(7) + dat_string("wiki.txt"); }

/// The keys and tensors of an importance matrix in GGUF, each of which can be made wrong.
struct GgufParts {
  GgufMetadata metadata;
  std::vector<GgufWriter::Tensor> table = {{"w.in_sum2", {2, 3}, GgmlType::kF32},
                                           {"w.counts", {1, 3}, GgmlType::kF32}};
  std::vector<float> sums = {8, 2, 0, 0, 9, 12}, counts = {4, 0, 3};

  GgufParts() {
    metadata.set("general.type", std::string("imatrix"));
    metadata.set("imatrix.datasets",
                 GgufArray{GgufValueType::kString, std::vector<std::string>{"wiki.txt"}});
    metadata.set("imatrix.chunk_count", uint32_t{5});
    metadata.set("imatrix.chunk_size", uint32_t{512});
  }
  void write(const std::string& path) const {
    GgufWriter writer(path, metadata, table);
    for (const GgufWriter::Tensor& tensor : table) {
      const std::vector<float>& values = tensor.name.ends_with(".counts") ? counts : sums;
      const auto bytes = std::as_bytes(std::span(values));
      writer.write(tensor.type == GgmlType::kF32 ? bytes : bytes.first(bytes.size() / 2));
    }
    writer.finish();
  }
};

class ImatrixTest : public testing::Test {
 protected:
  /// The error without the path in front of it, or "" when the file is read.
  std::string refusal() {
    try {
      Imatrix::open(path_);
    } catch (const Error& error) {
      const std::string line = error.what();
      EXPECT_EQ(line.rfind(path_ + ": ", 0), 0u) << line;
      return line.substr(std::min(line.size(), path_.size() + 2));
    }
    return "";
  }
  std::string refusal_of(const std::string& bytes) {
    write_bytes(path_, bytes);
    return refusal();
  }
  std::string refusal_of(const GgufParts& parts) {
    parts.write(path_);
    return refusal();
  }

  TemporaryFolder folder_;
  const std::string path_ = folder_.file("imatrix");
};

TEST_F(ImatrixTest, GgufIsRead) {
  GgufParts().write(path_);
  const Imatrix imatrix = Imatrix::open(path_);
  EXPECT_EQ(imatrix.path, path_);
  EXPECT_EQ(imatrix.datasets, std::vector<std::string>{"wiki.txt"});
  EXPECT_EQ(imatrix.chunk_count, 5);
  EXPECT_EQ(imatrix.chunk_size, 512);
  ASSERT_EQ(imatrix.entries.size(), 1u);
  EXPECT_EQ(imatrix.entries.at("w"), (ImatrixEntry{{8, 2, 0, 0, 9, 12}, {4, 0, 3}}));
  // The expert in the middle was never reached.
  EXPECT_EQ(mean_squares(imatrix.entries.at("w")), (std::vector<float>{2, 0.5f, 1, 1, 3, 4}));
}

TEST_F(ImatrixTest, WhatIsWrittenIsReadAgain) {
  Imatrix imatrix;
  imatrix.datasets = {"a.txt", "b.txt"};
  imatrix.chunk_count = 3;
  imatrix.chunk_size = 64;
  imatrix.entries = {{"blk.0.attn_q.weight", {{1.5f, 0, 3}, {192}}},
                     {"blk.0.ffn_up_exps.weight", {{1, 2, 3, 4}, {0, 192}}}};
  imatrix.write(path_);
  const Imatrix again = Imatrix::open(path_);
  EXPECT_EQ(again.datasets, imatrix.datasets);
  EXPECT_EQ(again.chunk_count, 3);
  EXPECT_EQ(again.chunk_size, 64);
  EXPECT_EQ(again.entries, imatrix.entries);
  // llama.cpp's shapes: no dimension of size 1 at the end.
  const GgufFile file = GgufFile::open(path_);
  EXPECT_EQ(file.tensor("blk.0.attn_q.weight.in_sum2").shape, (std::vector<int64_t>{3}));
  EXPECT_EQ(file.tensor("blk.0.attn_q.weight.counts").shape, (std::vector<int64_t>{1}));
  EXPECT_EQ(file.tensor("blk.0.ffn_up_exps.weight.in_sum2").shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(file.tensor("blk.0.ffn_up_exps.weight.counts").shape, (std::vector<int64_t>{1, 2}));
}

TEST_F(ImatrixTest, DatIsRead) {
  write_bytes(path_, dat_entries() + dat_end());
  const Imatrix imatrix = Imatrix::open(path_);
  EXPECT_EQ(imatrix.datasets, std::vector<std::string>{"wiki.txt"});
  EXPECT_EQ(imatrix.chunk_count, 7);
  ASSERT_EQ(imatrix.entries.size(), 2u);
  EXPECT_EQ(mean_squares(imatrix.entries.at("blk.0.attn_q.weight")), (std::vector<float>{2, 0.5f}));
  EXPECT_EQ(mean_squares(imatrix.entries.at("blk.0.ffn_down.weight")),
            (std::vector<float>{0.25f, 0, 0.75f}));
  // Values of no calls are taken as they are.
  write_bytes(path_, raw<int32_t>(1) + dat_entry("w", 0, {3, 5}));
  EXPECT_EQ(mean_squares(Imatrix::open(path_).entries.at("w")), (std::vector<float>{3, 5}));
}

TEST_F(ImatrixTest, ADatMayEndAfterItsEntriesOrItsChunksAndNowhereElse) {
  const std::string whole = dat_entries() + dat_end();
  for (size_t size = 0; size <= whole.size(); ++size) {
    const size_t after_entries = dat_entries().size();
    const bool complete =
        size == after_entries || size == after_entries + sizeof(int32_t) || size == whole.size();
    EXPECT_EQ(refusal_of(whole.substr(0, size)).empty(), complete) << "after " << size << " bytes";
  }
}

TEST_F(ImatrixTest, AGgufCutAnywhereIsRefused) {
  GgufParts().write(path_);
  std::string whole = read_bytes(path_);
  whole.resize(whole.find_last_not_of('\0') + 1);  // without the padding at its end
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_NE(refusal_of(whole.substr(0, size)), "") << "after " << size << " bytes";
}

TEST_F(ImatrixTest, AnyByteChangedIsReadOrRefusedButNeverCrashes) {
  GgufParts().write(path_);
  for (const std::string& whole : {dat_entries() + dat_end(), read_bytes(path_)})
    for (size_t at = 0; at < whole.size(); ++at)
      for (const int flip : {0x01, 0x40, 0x80, 0xff}) {
        std::string changed = whole;
        changed[at] = static_cast<char>(changed[at] ^ flip);
        refusal_of(
            changed);  // Error or not; anything else, and any sanitizer report, ends the test
      }
}

TEST_F(ImatrixTest, DatsThatAreRefused) {
  const std::string kDat = "no GGUF file, read as a .dat: ";
  EXPECT_EQ(
      refusal_of(""),
      kDat + "byte 0: the number of entries wants 4 bytes, found the end of the file after 0");
  EXPECT_EQ(refusal_of(raw<int32_t>(0)), kDat +
                                             "byte 0: the number of entries is 0, wanted at "
                                             "least 1");
  EXPECT_EQ(refusal_of(raw<int32_t>(1) + raw<int32_t>(-1)),
            kDat + "entry 0: byte 4: the length of the name is -1, wanted at least 0");
  EXPECT_EQ(refusal_of(raw<int32_t>(1) + raw<int32_t>(1 << 30) + "name"),
            kDat +
                "entry 0: byte 8: the name wants 1073741824 bytes, found the end of the file "
                "after 4");
  EXPECT_EQ(refusal_of(raw<int32_t>(1) + dat_entry("w", -4, {1})),
            kDat + "entry 0: byte 9: the number of calls is -4, wanted at least 0");
  EXPECT_EQ(refusal_of(raw<int32_t>(1) + dat_entry("w", 4, {})),
            kDat + "entry 0: byte 13: the number of values is 0, wanted at least 1");
  EXPECT_EQ(refusal_of(raw<int32_t>(1) + dat_string("w") + raw<int32_t>(4) +
                       raw<int32_t>(std::numeric_limits<int32_t>::max())),
            kDat +
                "entry 0: byte 17: the values wants 8589934588 bytes, found the end of the file "
                "after 0");
  for (const float bad : {kNan, kInfinity, -1.0f})
    EXPECT_EQ(refusal_of(raw<int32_t>(1) + dat_entry("w", 4, {1, bad}))
                  .rfind(kDat + "entry 0: 'w': sum 1 is ", 0),
              0u);
  EXPECT_EQ(refusal_of(raw<int32_t>(2) + dat_entry("w", 4, {1}) + dat_entry("w", 4, {1})),
            kDat + "entry 1: 'w': comes twice");
}

TEST_F(ImatrixTest, KeysThatAreMissingOrWrong) {
  for (const std::string key : {"imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"}) {
    GgufParts parts;
    parts.metadata.erase(key);
    EXPECT_EQ(refusal_of(parts), "the metadata has no key '" + key + "'");
  }
  GgufParts model;
  model.metadata.set("general.type", std::string("model"));
  EXPECT_EQ(refusal_of(model), "no importance matrix: metadata key 'general.type' is 'model'");
  GgufParts words;
  words.metadata.set("imatrix.chunk_count", std::string("five"));
  EXPECT_EQ(refusal_of(words),
            "metadata key 'imatrix.chunk_count': wants an integer, found string");
  GgufParts many;
  many.metadata.set("imatrix.chunk_size", ~uint32_t{0});
  EXPECT_EQ(refusal_of(many),
            "metadata key 'imatrix.chunk_size': 4294967295 is no number of chunks or tokens");
  // llama.cpp does not ask for the type.
  GgufParts untold;
  untold.metadata.erase("general.type");
  EXPECT_EQ(refusal_of(untold), "");
}

TEST_F(ImatrixTest, TensorsThatAreMissingOrOfAnotherTypeOrShape) {
  GgufParts empty;
  empty.table.clear();
  EXPECT_EQ(refusal_of(empty), "has no tensor '....in_sum2'");
  GgufParts no_counts;
  no_counts.table.pop_back();
  EXPECT_EQ(refusal_of(no_counts), "has no tensor 'w.counts'");
  GgufParts no_sums;
  no_sums.table.erase(no_sums.table.begin());
  EXPECT_EQ(refusal_of(no_sums), "has no tensor 'w.in_sum2'");
  GgufParts half;
  half.table[0].type = GgmlType::kF16;
  EXPECT_EQ(refusal_of(half), "tensor 'w.in_sum2': wants F32, found F16");
  GgufParts uneven;
  uneven.table[1].shape = {4};
  uneven.counts = {1, 2, 3, 4};
  EXPECT_EQ(refusal_of(uneven), "tensor 'w.in_sum2': 6 sums are no whole rows for 4 counts");
}

TEST_F(ImatrixTest, NumbersThatAreNone) {
  for (const float bad : {kNan, kInfinity, -0.5f}) {
    GgufParts sums, counts;
    sums.sums[4] = counts.counts[2] = bad;
    EXPECT_EQ(refusal_of(sums).rfind("tensor 'w.in_sum2': sum 4 is ", 0), 0u);
    EXPECT_EQ(refusal_of(counts).rfind("tensor 'w.counts': count 2 is ", 0), 0u);
  }
}

TEST_F(ImatrixTest, SumsThatAreNotFiniteAreNotWritten) {
  Imatrix imatrix;
  imatrix.entries["w"] = {{1, kNan}, {1}};
  EXPECT_THROW(imatrix.write(path_), Error);
  EXPECT_EQ(folder_.num_files(), 0u);
}

}  // namespace
}  // namespace nibble
