#include "io/gguf.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <span>
#include <thread>

#include "base/error.h"
#include "io/atomic_file.h"
#include "tests/io/gguf_bytes.h"
#include "tests/io/temporary_folder.h"

namespace nibble {
namespace {

template <class T>
GgufArray array_of(GgufValueType type, std::vector<T> values) {
  return {type, std::move(values)};
}

GgufMetadata every_type() {
  using Type = GgufValueType;
  GgufMetadata metadata;
  metadata.set("general.architecture", std::string("llama"));
  metadata.set("u8", uint8_t{255});
  metadata.set("i8", int8_t{-128});
  metadata.set("u16", uint16_t{65535});
  metadata.set("i16", int16_t{-32768});
  metadata.set("u32", uint32_t{4294967295u});
  metadata.set("i32", std::numeric_limits<int32_t>::min());
  metadata.set("f32", 0.1f);
  metadata.set("bool", true);
  metadata.set("string", std::string("nul \0 inside, \xc3\xa9", 15));
  metadata.set("empty", std::string());
  metadata.set("u64", std::numeric_limits<uint64_t>::max());
  metadata.set("i64", std::numeric_limits<int64_t>::min());
  metadata.set("f64", 0.1);
  metadata.set("a.u8", array_of<uint8_t>(Type::kUint8, {0, 255}));
  metadata.set("a.i8", array_of<int8_t>(Type::kInt8, {-128, 127}));
  metadata.set("a.u16", array_of<uint16_t>(Type::kUint16, {1, 65535}));
  metadata.set("a.i16", array_of<int16_t>(Type::kInt16, {-32768, 3}));
  metadata.set("a.u32", array_of<uint32_t>(Type::kUint32, {7, 8, 9}));
  metadata.set("a.i32", array_of<int32_t>(Type::kInt32, {-7}));
  metadata.set("a.f32", array_of<float>(Type::kFloat32, {0.5f, -1e30f}));
  metadata.set("a.bool", array_of<uint8_t>(Type::kBool, {1, 0, 1}));
  metadata.set("a.string", array_of<std::string>(Type::kString, {"", "b", std::string(1000, 'c')}));
  metadata.set("a.u64", array_of<uint64_t>(Type::kUint64, {std::numeric_limits<uint64_t>::max()}));
  metadata.set("a.i64", array_of<int64_t>(Type::kInt64, {std::numeric_limits<int64_t>::min()}));
  metadata.set("a.f64", array_of<double>(Type::kFloat64, {0.1, 1e300}));
  metadata.set("a.none", array_of<std::string>(Type::kString, {}));
  return metadata;
}

std::vector<std::byte> numbered(size_t count) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i * 7 + count);
  return bytes;
}

TEST(Gguf, EveryMetadataTypeSurvivesWritingAndReading) {
  TemporaryFolder folder;
  GgufWriter writer(folder.file("m.gguf"), every_type(), {});
  writer.finish();
  const GgufFile file = GgufFile::open(folder.file("m.gguf"));
  EXPECT_EQ(file.version(), 3u);
  EXPECT_EQ(file.metadata().pairs(), every_type().pairs());
}

TEST(Gguf, TensorsSurviveWithTheirBytesAndPlaces) {
  TemporaryFolder folder;
  for (const uint32_t alignment : {1u, 32u, 4096u}) {
    GgufMetadata metadata;
    metadata.set("general.alignment", alignment);
    const std::vector<GgufWriter::Tensor> table = {
        {"scalar", {}, GgmlType::kF32},
        {"odd", {3}, GgmlType::kF16},
        {"blocks", {64, 3, 2}, GgmlType::kQ4_1},
        {std::string(200, 'n'), {256, 1, 1, 2}, GgmlType::kQ6_K}};
    const std::vector<size_t> sizes = {4, 6, 240, 420};
    GgufWriter writer(folder.file("m.gguf"), metadata, table);
    for (const size_t size : sizes) {
      const auto bytes = numbered(size);
      writer.write(std::span(bytes).first(size / 2));
      writer.write(std::span(bytes).subspan(size / 2));
    }
    writer.finish();
    const GgufFile file = GgufFile::open(folder.file("m.gguf"));
    ASSERT_EQ(file.tensors().size(), table.size());
    for (size_t i = 0; i < table.size(); ++i) {
      const GgufTensor& tensor = file.tensors()[i];
      EXPECT_EQ(tensor.name, table[i].name);
      EXPECT_EQ(tensor.shape, table[i].shape);
      EXPECT_EQ(tensor.type, table[i].type);
      EXPECT_EQ(tensor.file_offset % alignment, 0);
      EXPECT_EQ(std::vector(tensor.data.begin(), tensor.data.end()), numbered(sizes[i]));
    }
    EXPECT_EQ(file.file_bytes() % alignment, 0);
    EXPECT_EQ(file.tensor("blocks").num_rows(), 6);
    EXPECT_EQ(file.tensor("scalar").num_weights(), 1);
    EXPECT_EQ(file.find_tensor("block"), nullptr);
    EXPECT_THROW(file.tensor("block"), Error);
  }
}

TEST(Gguf, AFileWrittenByHandIsReadInBothVersions) {
  TemporaryFolder folder;
  for (const uint32_t version : {2u, 3u}) {
    const std::string data = raw(1.5f) + raw(-2.0f);
    const std::string bytes =
        padded(raw_header(version, 1, 2) +
               raw_key("general.name", GgufValueType::kString, raw_string("hand")) +
               raw_key("ids", GgufValueType::kArray,
                       raw_array(GgufValueType::kInt32, 2, raw<int32_t>(5) + raw<int32_t>(-6))) +
               raw_tensor("w", {2}, 0, 0)) +
        data;
    write_bytes(folder.file("m.gguf"), bytes);
    const GgufFile file = GgufFile::open(folder.file("m.gguf"));
    EXPECT_EQ(file.version(), version);
    EXPECT_EQ(file.metadata().get_string("general.name"), "hand");
    EXPECT_EQ(file.metadata().get_ints("ids"), (std::vector<int64_t>{5, -6}));
    EXPECT_EQ(std::memcmp(file.tensor("w").data.data(), data.data(), 8), 0);
  }
}

TEST(Gguf, RewritingARealFileGivesItsBytes) {
  const std::string path =
      std::string(NIBBLE_SOURCE_DIR) + "/../shared/data/models/stories260K/stories260K-f32.v3.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path;
  TemporaryFolder folder;
  const GgufFile source = GgufFile::open(path);
  std::vector<GgufWriter::Tensor> table;
  for (const GgufTensor& tensor : source.tensors())
    table.push_back({tensor.name, tensor.shape, tensor.type});
  GgufWriter writer(folder.file("copy.gguf"), source.metadata(), table);
  for (const GgufTensor& tensor : source.tensors()) writer.write(tensor.data);
  writer.finish();
  EXPECT_EQ(read_bytes(folder.file("copy.gguf")), read_bytes(path));
}

TEST(Gguf, PartsAreOfSoManyBytesAtMost) {
  TemporaryFolder folder;
  GgufMetadata metadata;
  metadata.set("general.alignment", uint32_t{64});
  const std::vector<int64_t> sizes = {3, 5, 40, 2, 2, 2, 20};  // of float32
  std::vector<GgufWriter::Tensor> table;
  for (size_t i = 0; i < sizes.size(); ++i)
    table.push_back({concat("t", i), {sizes[i]}, GgmlType::kF32});
  std::vector<std::string> paths;
  {
    GgufWriter writer(folder.file("m.gguf"), metadata, table, 40);
    paths = writer.paths();
    for (const int64_t size : sizes) {
      const std::vector<float> values(static_cast<size_t>(size), static_cast<float>(size));
      writer.write(std::as_bytes(std::span(values)));
    }
    EXPECT_FALSE(std::filesystem::exists(paths[0])) << "before all are whole";
    writer.finish();
  }
  ASSERT_EQ(paths.size(), 4u);
  EXPECT_EQ(paths[1], folder.file("m-00002-of-00004.gguf"));
  EXPECT_FALSE(std::filesystem::exists(folder.file("m.gguf")));
  const GgufFile file = GgufFile::open(paths[0]);
  const std::vector<int> parts = {0, 0, 1, 2, 2, 2, 3};
  ASSERT_EQ(file.tensors().size(), sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    const GgufTensor& tensor = file.tensors()[i];
    EXPECT_EQ(tensor.name, table[i].name);
    EXPECT_EQ(tensor.part, parts[i]);
    std::vector<float> values(static_cast<size_t>(sizes[i]));
    ASSERT_EQ(tensor.data.size(), values.size() * sizeof(float));
    std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
    for (const float value : values) EXPECT_EQ(value, static_cast<float>(sizes[i]));
  }
  GgufWriter whole(folder.file("w.gguf"), {}, table, 1000);
  EXPECT_EQ(whole.paths(), std::vector<std::string>{folder.file("w.gguf")});
}

TEST(Gguf, ReleasedDataIsThereStill) {
  TemporaryFolder folder;
  constexpr size_t kBytes = 64 * 1024;
  GgufWriter writer(folder.file("m.gguf"), {}, {{"w", {kBytes / 4}, GgmlType::kF32}});
  writer.write(numbered(kBytes));
  writer.finish();
  const GgufFile file = GgufFile::open(folder.file("m.gguf"));
  const GgufTensor& tensor = file.tensor("w");
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(std::vector(tensor.data.begin(), tensor.data.end()), numbered(kBytes));
    file.release(tensor);
  }
}

std::string part_name(int part, int count) {
  char name[64];
  std::snprintf(name, sizeof name, "m-%05d-of-%05d.gguf", part + 1, count);
  return name;
}

/// One tensor of two floats a part.
void write_part(const TemporaryFolder& folder, int part, int count, const std::string& tensor,
                int32_t total) {
  GgufMetadata metadata;
  if (part == 0) metadata.set("general.name", std::string("split"));
  metadata.set("split.no", static_cast<uint16_t>(part));
  metadata.set("split.count", static_cast<uint16_t>(count));
  metadata.set("split.tensors.count", total);
  GgufWriter writer(folder.file(part_name(part, count)), metadata, {{tensor, {2}, GgmlType::kF32}});
  writer.write(numbered(8));
  writer.finish();
}

std::string opening_fails_with(const std::string& path) {
  try {
    GgufFile::open(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Gguf, SplitFilesAreReadAsOne) {
  TemporaryFolder folder;
  for (int part = 0; part < 3; ++part) write_part(folder, part, 3, "t" + std::to_string(part), 3);
  const GgufFile file = GgufFile::open(folder.file(part_name(0, 3)));
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.tensor("t2").part, 2);
  EXPECT_EQ(file.tensor("t2").data.size(), 8u);
  EXPECT_EQ(file.metadata().get_string("general.name"), "split");
  EXPECT_EQ(file.file_bytes(),
            static_cast<int64_t>(read_bytes(folder.file(part_name(0, 3))).size() +
                                 2 * read_bytes(folder.file(part_name(1, 3))).size()));
}

TEST(Gguf, SplitFilesThatDoNotBelongTogetherAreRefused) {
  TemporaryFolder folder;
  write_part(folder, 0, 2, "a", 2);
  const std::string first = folder.file(part_name(0, 2)), second = folder.file(part_name(1, 2));
  EXPECT_NE(opening_fails_with(first).find(second + ": cannot open"), std::string::npos);
  write_part(folder, 1, 2, "a", 2);
  EXPECT_EQ(opening_fails_with(first), first + ": tensor 'a' comes twice");
  EXPECT_EQ(opening_fails_with(second), second + ": part 2 of 2; give the first part");
  write_part(folder, 0, 2, "b", 5);
  EXPECT_EQ(opening_fails_with(first), first + ": its parts should hold 5 tensors, found 2");
  std::filesystem::copy_file(folder.file(part_name(0, 2)), folder.file("renamed.gguf"));
  EXPECT_NE(opening_fails_with(folder.file("renamed.gguf")).find("-00001-of-00002.gguf"),
            std::string::npos);
  write_part(folder, 0, 2, "b", 2);
  std::filesystem::copy_file(first, second, std::filesystem::copy_options::overwrite_existing);
  EXPECT_NE(opening_fails_with(first).find("wants part 2 of 2, found part 1 of 2"),
            std::string::npos);
}

TEST(GgufMetadata, TakesIntegersOfAnyWidthThatFit) {
  const GgufMetadata metadata = every_type();
  EXPECT_EQ(metadata.get_int("u8"), 255);
  EXPECT_EQ(metadata.get_int("i64"), std::numeric_limits<int64_t>::min());
  EXPECT_THROW(metadata.get_int("u64"), Error);
  EXPECT_THROW(metadata.get_int("f32"), Error);
  EXPECT_THROW(metadata.get_int("bool"), Error);
  EXPECT_EQ(metadata.get_float("i8"), -128.0);
  EXPECT_EQ(metadata.get_float("f32"), 0.1f);
  EXPECT_EQ(metadata.get_int_or("none", 3), 3);
  EXPECT_EQ(metadata.get_ints("a.u16"), (std::vector<int64_t>{1, 65535}));
  EXPECT_THROW(metadata.get_ints("a.bool"), Error);
  EXPECT_THROW(metadata.get_ints("a.u64"), Error);
  EXPECT_EQ(metadata.get_strings("a.string").size(), 3u);
  EXPECT_EQ(metadata.get_floats("a.f32")[0], 0.5f);
  EXPECT_TRUE(metadata.get_bool_or("bool", false));
  EXPECT_THROW(metadata.get_bool_or("u8", false), Error);
}

TEST(GgufMetadata, ErrorsNameKeyWantedAndFound) {
  const GgufMetadata metadata = every_type();
  const auto message = [&](const auto& look_up) -> std::string {
    try {
      look_up();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message([&] { metadata.get_string("u8"); }),
            "metadata key 'u8': wants a string, found uint8");
  EXPECT_EQ(message([&] { metadata.get_strings("a.f32"); }),
            "metadata key 'a.f32': wants an array of strings, found array of float32");
  EXPECT_EQ(message([&] { metadata.get_int("none"); }), "the metadata has no key 'none'");
}

TEST(GgufMetadata, SetReplacesInPlaceAndEraseRemoves) {
  GgufMetadata metadata;
  metadata.set("a", uint8_t{1});
  metadata.set("b", uint8_t{2});
  metadata.set("a", std::string("x"));
  EXPECT_EQ(metadata.pairs()[0].first, "a");
  EXPECT_EQ(metadata.get_string("a"), "x");
  metadata.erase("a");
  EXPECT_FALSE(metadata.contains("a"));
  EXPECT_EQ(metadata.pairs().size(), 1u);
}

TEST(GgufWriter, RefusesWhatNoFileMayHold) {
  TemporaryFolder folder;
  const std::string path = folder.file("m.gguf");
  GgufMetadata bad;
  bad.set("general.alignment", uint32_t{24});
  EXPECT_THROW(GgufWriter(path, bad, {}), Error);
  EXPECT_THROW(GgufWriter(path, {}, {{"a", {4}, GgmlType::kF32}, {"a", {4}, GgmlType::kF32}}),
               Error);
  EXPECT_THROW(GgufWriter(path, {}, {{"a", {33}, GgmlType::kQ4_0}}), Error);
  EXPECT_EQ(folder.num_files(), 0u);
}

TEST(GgufWriter, PiecesInAnyOrderAndFromSeveralThreadsGiveTheSameFile) {
  TemporaryFolder folder;
  const std::vector<GgufWriter::Tensor> table = {{"a", {32, 3}, GgmlType::kQ8_0},
                                                 {"b", {5}, GgmlType::kF32},
                                                 {"c", {64, 100}, GgmlType::kF32}};
  const auto a = numbered(3 * 34), b = numbered(5 * 4), c = numbered(64 * 100 * 4);
  {
    GgufWriter writer(folder.file("row"), every_type(), table);
    for (const auto* bytes : {&a, &b, &c}) writer.write(*bytes);
    writer.finish();
  }
  GgufWriter writer(folder.file("pieces"), every_type(), table);
  writer.begin_pieces();
  writer.put(34, std::span(a).subspan(34));
  writer.put(0, std::span(a).first(34));
  writer.end_pieces();
  writer.write(b);
  writer.begin_pieces();
  std::vector<std::thread> threads;
  for (size_t row = 0; row < 100; ++row)
    threads.emplace_back([&, row] {
      writer.put(static_cast<int64_t>(row * 256), std::span(c).subspan(row * 256, 256));
    });
  for (std::thread& thread : threads) thread.join();
  writer.end_pieces();
  writer.finish();
  EXPECT_EQ(read_file(folder.file("pieces")), read_file(folder.file("row")));
}

TEST(GgufWriter, PiecesMustAddUpToTheTensor) {
  TemporaryFolder folder;
  GgufWriter writer(folder.file("out"), {}, {{"a", {8}, GgmlType::kF32}});
  const auto bytes = numbered(32);
  writer.begin_pieces();
  EXPECT_THROW(writer.put(4, bytes), Error);
  EXPECT_THROW(writer.put(-1, bytes), Error);
  writer.put(0, std::span(bytes).first(31));
  EXPECT_THROW(writer.end_pieces(), Error);
  EXPECT_THROW(writer.finish(), Error);
}

TEST(GgufWriter, SyncLeavesOnlyTheRename) {
  TemporaryFolder folder;
  write_file(folder.file("m.gguf"), "old");
  GgufWriter writer(folder.file("m.gguf"), {}, {{"a", {2}, GgmlType::kF32}});
  EXPECT_THROW(writer.sync(), Error);
  writer.write(numbered(8));
  writer.sync();
  EXPECT_EQ(read_file(folder.file("m.gguf")), "old");
  writer.finish();
  EXPECT_EQ(GgufFile::open(folder.file("m.gguf")).tensors().size(), 1u);
}

TEST(GgufWriter, WantsEveryByteAndNoMore) {
  TemporaryFolder folder;
  write_file(folder.file("m.gguf"), "old");
  {
    GgufWriter writer(folder.file("m.gguf"), {}, {{"a", {2}, GgmlType::kF32}});
    EXPECT_THROW(writer.write(numbered(9)), Error);
    writer.write(numbered(4));
    EXPECT_THROW(writer.finish(), Error);
  }
  EXPECT_EQ(read_file(folder.file("m.gguf")), "old");
  EXPECT_EQ(folder.num_files(), 1u);
}

}  // namespace
}  // namespace nibble
