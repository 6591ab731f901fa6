#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/error.h"

namespace nibble {
namespace {

std::string temporary_path(const std::string& name) {
  return testing::TempDir() + "nibble_safetensors_" +
         testing::UnitTest::GetInstance()->current_test_info()->name() + "_" + name;
}

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void spill(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// A file's bytes from its header's text, with a true header length.
std::string assemble(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  return file + header + std::string(data_bytes, '\x11');
}

// The message with which a file of these bytes is refused; fails the test when it is not.
std::string refusal(std::string_view bytes) {
  const std::string path = temporary_path("refused.safetensors");
  spill(path, bytes);
  try {
    SafetensorsFile::open(path);
  } catch (const Error& error) {
    std::filesystem::remove(path);
    const std::string line = error.what();
    EXPECT_EQ(line.rfind(path + ": ", 0), 0u) << line;
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
    return line;
  }
  ADD_FAILURE() << "was not refused: " << bytes.substr(8, 200);
  return "";
}

const std::vector<uint8_t> kBytes = {1, 2, 3};
const std::vector<float> kFloats = {1.5f, -0.0f, 1e-40f, 3e38f, 5.0f, 6.0f};
const std::vector<uint16_t> kHalves = {0x3c00, 0xfc00};

std::vector<SafetensorsEntry> sample_entries() {
  return {{"codes", "U8", {3}, bytes_of(kBytes)},
          {"blk.0.w", "F32", {2, 3}, bytes_of(kFloats)},
          {"half", "F16", {2, 1}, bytes_of(kHalves)},
          {"empty", "F32", {0, 7}, {}},
          {"scalar", "F32", {}, bytes_of(kFloats).first(4)}};
}

TEST(Safetensors, KeepsEveryEntryAndTheMetadata) {
  const std::string path = temporary_path("file.safetensors");
  write_safetensors(path, sample_entries(), {{"step", "12"}, {"quote\"", "ümlaut\n"}});
  const SafetensorsFile file = SafetensorsFile::open(path);
  EXPECT_EQ(file.entries().size(), sample_entries().size());
  EXPECT_EQ(file.metadata().at("quote\""), "ümlaut\n");
  EXPECT_EQ(file.metadata().at("step"), "12");
  for (const SafetensorsEntry& wanted : sample_entries()) {
    const SafetensorsEntry& found = file.entry(wanted.name);
    EXPECT_EQ(found.dtype, wanted.dtype);
    EXPECT_EQ(found.shape, wanted.shape);
    ASSERT_EQ(found.data.size(), wanted.data.size());
    EXPECT_TRUE(std::equal(found.data.begin(), found.data.end(), wanted.data.begin()))
        << wanted.name;
  }
  EXPECT_EQ(file.find("blk.0"), nullptr);
}

TEST(Safetensors, AlignsEveryEntryToItsElement) {
  const std::string path = temporary_path("file.safetensors");
  write_safetensors(path, sample_entries(), {});
  const SafetensorsFile file = SafetensorsFile::open(path);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.entries().front().data.data()) % 8, 0u);
  for (const SafetensorsEntry& entry : file.entries()) {
    if (entry.dtype == "F32") {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(entry.data.data()) % 4, 0u);
    }
  }
}

TEST(Safetensors, WithoutEntriesIsAFile) {
  const std::string path = temporary_path("file.safetensors");
  write_safetensors(path, {}, {});
  EXPECT_TRUE(SafetensorsFile::open(path).entries().empty());
}

TEST(Safetensors, MissingEntryNamesTheNearest) {
  const std::string path = temporary_path("file.safetensors");
  write_safetensors(path, sample_entries(), {});
  const SafetensorsFile file = SafetensorsFile::open(path);
  try {
    file.entry("scaler");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), path + ": no entry 'scaler' (did you mean 'scalar'?)");
  }
}

TEST(Safetensors, RefusesEveryTruncationAndAnyTail) {
  const std::string path = temporary_path("file.safetensors");
  write_safetensors(path, sample_entries(), {{"step", "12"}});
  const std::string whole = slurp(path);
  for (size_t length = 0; length < whole.size(); ++length)
    refusal(std::string_view(whole).substr(0, length));
  refusal(whole + '\0');
}

TEST(Safetensors, AChecksumNoticesEveryDamagedByte) {
  const std::string path = temporary_path("file.safetensors");
  write_safetensors(path, sample_entries(), {{"step", "12"}}, {.checksum = true});
  const SafetensorsFile file = SafetensorsFile::open(path);
  EXPECT_TRUE(file.has_checksum());
  EXPECT_EQ(file.entries().back().name, kChecksumEntry);
  EXPECT_EQ(file.entries().size(), sample_entries().size() + 1);
  file.verify_checksum();

  const std::string whole = slurp(path);
  const std::string damaged = temporary_path("damaged.safetensors");
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string text = whole;
    text[at] = static_cast<char>(text[at] ^ (1 << at % 8));
    spill(damaged, text);
    EXPECT_THROW(SafetensorsFile::open(damaged).verify_checksum(), Error) << "byte " << at;
  }
  write_safetensors(path, sample_entries(), {});
  EXPECT_FALSE(SafetensorsFile::open(path).has_checksum());
  EXPECT_THROW(SafetensorsFile::open(path).verify_checksum(), Error);
}

// Any single byte of length or header may change: the file is either refused or still consistent,
// never read out of bounds (the sanitizer build is what makes the second half of this a test).
TEST(Safetensors, SurvivesEveryChangedHeaderByte) {
  const std::string path = temporary_path("file.safetensors");
  write_safetensors(path, sample_entries(), {{"step", "12"}});
  const std::string whole = slurp(path);
  uint64_t header_bytes;
  std::memcpy(&header_bytes, whole.data(), sizeof header_bytes);
  int refused = 0, read = 0;
  for (size_t at = 0; at < 8 + header_bytes; ++at) {
    for (const char mask : {'\x01', '\x10', '\x80', '\xff'}) {
      std::string changed = whole;
      changed[at] = static_cast<char>(changed[at] ^ mask);
      spill(path, changed);
      try {
        int sum = 0;
        const SafetensorsFile file = SafetensorsFile::open(path);
        for (const SafetensorsEntry& entry : file.entries())
          for (const std::byte each : entry.data) sum += std::to_integer<int>(each);
        EXPECT_GT(sum, 0);
        ++read;
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, read);
  EXPECT_GT(read, 0);  // letters of names and metadata
}

struct Corruption {
  const char* what;
  std::string header;
  size_t data_bytes;
  const char* wanted;  // in the message
};

const Corruption kCatalogue[] = {
    {"a hole", R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", 3, "behind a hole"},
    {"overlap",
     R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
     4, "inside the entry before it"},
    {"bytes nobody owns", R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 3,
     "the file has 3 data bytes"},
    {"past the end", R"({"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}})", 3,
     "do not lie in the file's 3"},
    {"end before begin", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[2,1]}})", 3,
     "do not lie"},
    {"size and shape differ", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,3]}})", 3,
     "want 4"},
    {"2^63 elements", R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,3]}})",
     3, "wanted an integer"},
    {"a product beyond 2^63",
     R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
     "more than 2^63 bytes"},
    {"an integer of 30 digits",
     R"({"a":{"dtype":"U8","shape":[100000000000000000000000000000],"data_offsets":[0,3]}})", 3,
     "wanted an integer"},
    {"a float out of range", R"({"a":{"dtype":"U8","shape":[1e999],"data_offsets":[0,3]}})", 3,
     "not JSON that can"},
    {"a negative size", R"({"a":{"dtype":"U8","shape":[-3],"data_offsets":[0,3]}})", 3,
     "wanted an integer"},
    {"a fractional size", R"({"a":{"dtype":"U8","shape":[3.0],"data_offsets":[0,3]}})", 3,
     "wanted an integer"},
    {"an unknown dtype", R"({"a":{"dtype":"F33","shape":[3],"data_offsets":[0,3]}})", 3,
     "unknown dtype 'F33'"},
    {"no dtype", R"({"a":{"shape":[3],"data_offsets":[0,3]}})", 3, "has no 'dtype'"},
    {"no offsets", R"({"a":{"dtype":"U8","shape":[3]}})", 3, "has no 'data_offsets'"},
    {"a fourth member", R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3],"x":0}})", 3,
     "members other than"},
    {"three offsets", R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3,3]}})", 3,
     "array of two"},
    {"shape no array", R"({"a":{"dtype":"U8","shape":3,"data_offsets":[0,3]}})", 3,
     "'shape' is not"},
    {"dtype no string", R"({"a":{"dtype":1,"shape":[3],"data_offsets":[0,3]}})", 3,
     "'dtype' is not"},
    {"an entry no object", R"({"a":[1]})", 0, "entry 'a': is a JSON array"},
    {"a name twice",
     R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})",
     3, "'a' twice"},
    {"a member twice", R"({"a":{"dtype":"U8","dtype":"I8","shape":[3],"data_offsets":[0,3]}})", 3,
     "'dtype' twice"},
    {"metadata no strings", R"({"__metadata__":{"step":12}})", 0,
     "value of 'step' is not a string"},
    {"metadata no object", R"({"__metadata__":"x"})", 0, "'__metadata__': is not an object"},
    {"an array", "[]", 0, "is a JSON array"},
    {"nothing", "", 0, "not JSON, at byte offset"},
    {"half an object", R"({"a":)", 0, "not JSON, at byte offset"},
    {"two objects", "{}{}", 0, "not JSON, at byte offset"},
    {"bytes that are not UTF-8", "{\"\xff\xfe\":{}}", 0, "not JSON"},
    {"deep nesting", std::string(1'000'000, '['), 0, "nested deeper"},
    {"deep objects", R"({"a":{"shape":[{"a":1}]}})", 0, "nested deeper"},
};

TEST(Safetensors, RefusesTheCatalogueOfCorruptions) {
  for (const Corruption& each : kCatalogue) {
    SCOPED_TRACE(each.what);
    const std::string line = refusal(assemble(each.header, each.data_bytes));
    EXPECT_NE(line.find(each.wanted), std::string::npos) << line;
  }
}

TEST(Safetensors, RefusesHeaderLengthsBeyondTheFile) {
  for (const uint64_t length :
       {uint64_t{3}, uint64_t{1} << 40, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    std::string file = assemble("{}", 0);
    std::memcpy(file.data(), &length, sizeof length);
    EXPECT_NE(refusal(file).find("byte offset 0: header of"), std::string::npos);
  }
}

TEST(Safetensors, WriterRefusesAndLeavesTheOldFile) {
  const std::string path = temporary_path("file.safetensors");
  spill(path, "old");
  const auto refused = [&](std::vector<SafetensorsEntry> entries) {
    EXPECT_THROW(write_safetensors(path, entries, {}), Error);
    EXPECT_EQ(slurp(path), "old");
  };
  refused({{"a", "U8", {3}, bytes_of(kBytes)}, {"a", "U8", {3}, bytes_of(kBytes)}});
  refused({{"a", "U8", {4}, bytes_of(kBytes)}});
  refused({{"a", "U9", {3}, bytes_of(kBytes)}});
  refused({{"a", "U8", {-3}, bytes_of(kBytes)}});
  refused({{"__metadata__", "U8", {3}, bytes_of(kBytes)}});
  refused({{"\xff", "U8", {3}, bytes_of(kBytes)}});
}

TEST(Safetensors, DataThatIsMadeWhileItIsWritten) {
  const std::string path = temporary_path("made.safetensors");
  const std::vector<SafetensorsEntry> entries = {{"a", "U8", {3}, {}}, {"b", "F32", {2}, {}}};
  const std::vector<float> floats = {1.5f, -2.0f};
  size_t bytes_of_a = 3;
  const auto write = [&](bool checksum) {
    write_safetensors(path, entries, {},
                      [&](const SafetensorsEntry& entry, const SafetensorsSink& sink) {
                        if (entry.name == "b") return sink(bytes_of(floats));
                        for (size_t i = 0; i < bytes_of_a; ++i)
                          sink(bytes_of(kBytes).subspan(i, 1));
                      },
                      {.checksum = checksum});
  };
  std::string whole;
  for (const bool checksum : {true, false}) {
    write(checksum);
    whole = slurp(path);
    write_safetensors(path,
                      {{"a", "U8", {3}, bytes_of(kBytes)}, {"b", "F32", {2}, bytes_of(floats)}}, {},
                      {.checksum = checksum});
    EXPECT_EQ(slurp(path), whole);
    EXPECT_EQ(SafetensorsFile::open(path).has_checksum(), checksum);
  }
  bytes_of_a = 2;
  try {
    write(false);
    ADD_FAILURE() << "was not refused";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what())
                  .find("entry 'a': has 2 data bytes, its dtype and shape "
                        "want 3"),
              std::string::npos)
        << error.what();
  }
  EXPECT_EQ(slurp(path), whole);
  std::filesystem::remove(path);
}

TEST(Safetensors, MissingFileNamesThePath) {
  try {
    SafetensorsFile::open("/nonexistent/x.safetensors");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("/nonexistent/x.safetensors"), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble
