// The catalogue of corrupted files: each is one field wrong, and each is refused with a line that
// names the place.

#include <gtest/gtest.h>

#include "base/error.h"
#include "io/gguf.h"
#include "tests/io/gguf_bytes.h"
#include "tests/io/temporary_folder.h"

namespace nibble {
namespace {

using Type = GgufValueType;

class HostileGguf : public testing::Test {
 protected:
  /// The error without the path in front of it, or "" when the file is read.
  std::string refusal(const std::string& bytes) {
    write_bytes(path_, bytes);
    try {
      GgufFile::open(path_);
    } catch (const Error& error) {
      const std::string line = error.what();
      EXPECT_EQ(line.rfind(path_ + ": ", 0), 0u) << line;
      return line.substr(std::min(line.size(), path_.size() + 2));
    }
    return "";
  }

  /// A file of one key: its value type and bytes as given.
  std::string refusal_of_key(Type type, const std::string& value) {
    return refusal(raw_header(3, 0, 1) + raw_key("k", type, value));
  }

  /// A file with this tensor table and `data_bytes` of data.
  std::string refusal_of_tensors(const std::vector<std::string>& rows, size_t data_bytes) {
    std::string bytes = raw_header(3, rows.size(), 0);
    for (const std::string& row : rows) bytes += row;
    return refusal(padded(bytes) + std::string(data_bytes, 'd'));
  }

  TemporaryFolder folder_;
  const std::string path_ = folder_.file("hostile.gguf");
};

/// A small file with a bit of everything.
std::string small_file() {
  const std::string table =
      raw_header(3, 2, 3) + raw_key("general.name", Type::kString, raw_string("small")) +
      raw_key("words", Type::kArray,
              raw_array(Type::kString, 2, raw_string("a") + raw_string("bc"))) +
      raw_key("sizes", Type::kArray, raw_array(Type::kUint16, 3, std::string(6, '\1'))) +
      raw_tensor("first", {32, 2}, 8, 0) + raw_tensor("second", {3}, 0, 96);
  return padded(table) + std::string(96, 'x') + std::string(12, 'y');
}

TEST_F(HostileGguf, TheSmallFileItselfIsRead) { EXPECT_EQ(refusal(small_file()), ""); }

TEST_F(HostileGguf, CutAnywhere) {
  const std::string whole = small_file();
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::string line = refusal(whole.substr(0, size));
    EXPECT_NE(line, "") << "cut after " << size << " bytes and yet read";
  }
}

TEST_F(HostileGguf, AnyByteOfTheHeaderChangedIsReadOrRefusedButNeverCrashes) {
  const std::string whole = small_file();
  for (size_t at = 0; at < whole.size() - 108; ++at)
    for (const int flip : {0x01, 0x40, 0x80, 0xff}) {
      std::string changed = whole;
      changed[at] = static_cast<char>(changed[at] ^ flip);
      refusal(changed);  // Error or not; anything else, and any sanitizer report, ends the test
    }
}

TEST_F(HostileGguf, Magic) {
  EXPECT_EQ(refusal("ABCD" + small_file().substr(4)),
            "byte 0: no GGUF file: wants the magic 'GGUF', found 0x44434241");
  EXPECT_EQ(refusal(""), "byte 0: the magic wants 4 bytes, found the end of the file after 0");
}

TEST_F(HostileGguf, Versions) {
  EXPECT_EQ(refusal(raw_header(1, 0, 0)), "byte 4: GGUF version 1; 2 and 3 can be read");
  EXPECT_EQ(refusal(raw_header(4, 0, 0)), "byte 4: GGUF version 4; 2 and 3 can be read");
  EXPECT_EQ(refusal(raw_header(0x03000000u, 0, 0)),
            "byte 4: a big-endian GGUF file; little-endian is wanted");
}

TEST_F(HostileGguf, CountsBeyondTheFile) {
  constexpr uint64_t kHuge = uint64_t{1} << 63;
  EXPECT_EQ(refusal(raw_header(3, kHuge, 0)),
            "byte 8: the number of tensors is 9223372036854775808, but the rest of the file, 8 "
            "bytes, has room for "
            "at most 0");
  EXPECT_NE(
      refusal(raw_header(3, 0, kHuge)).find("byte 16: the number of keys is 9223372036854775808"),
      std::string::npos);
  for (const uint64_t count : {uint64_t{1} << 61, kHuge, ~uint64_t{0}})
    for (const Type element : {Type::kUint8, Type::kFloat64, Type::kString, Type::kBool}) {
      const std::string line = refusal_of_key(Type::kArray, raw_array(element, count, "12345678"));
      EXPECT_EQ(line.rfind("key 'k': byte ", 0), 0u) << line;
    }
}

TEST_F(HostileGguf, StringsBeyondTheFile) {
  constexpr uint64_t kLength = uint64_t{1} << 40;
  EXPECT_EQ(
      refusal_of_key(Type::kString, raw(kLength) + "short"),
      "key 'k': byte 45: the value wants 1099511627776 bytes, found the end of the file after 5");
  EXPECT_NE(refusal(raw_header(3, 0, 1) + raw(kLength) + std::string(20, 'k'))
                .find("key 0: byte 32: the name wants"),
            std::string::npos);
  EXPECT_NE(refusal_of_tensors({raw(kLength) + std::string(30, 'n')}, 0)
                .find("tensor 0: byte 32: the name wants"),
            std::string::npos);
}

TEST_F(HostileGguf, ValueTypes) {
  EXPECT_EQ(refusal_of_key(static_cast<Type>(13), "12345678"),
            "key 'k': byte 33: unknown value type 13; 0 to 12 are known");
  EXPECT_EQ(refusal_of_key(Type::kArray, raw_array(static_cast<Type>(99), 0, "")),
            "key 'k': byte 37: unknown element type 99; 0 to 12 are known");
  EXPECT_NE(
      refusal_of_key(Type::kArray, raw_array(Type::kArray, 1, raw_array(Type::kUint8, 0, ""))), "");
}

TEST_F(HostileGguf, Names) {
  const std::string key = raw_key("twice", Type::kUint8, "1");
  EXPECT_EQ(refusal(raw_header(3, 0, 2) + key + key), "byte 42: key 'twice' comes twice");
  EXPECT_EQ(refusal_of_tensors({raw_tensor("w", {1}, 0, 0), raw_tensor("w", {1}, 0, 32)}, 64),
            "tensor 'w' comes twice");
  const std::string odd =
      refusal(raw_header(3, 0, 1) + raw_key("a\nb\x1b[31m", static_cast<Type>(77), ""));
  EXPECT_EQ(odd.rfind("key 'a?b?[31m': ", 0), 0u) << odd;
  EXPECT_LT(
      refusal(raw_header(3, 0, 1) + raw_key(std::string(5000, 'k'), static_cast<Type>(77), ""))
          .size(),
      200u);
}

TEST_F(HostileGguf, Alignment) {
  const auto with_alignment = [&](Type type, const std::string& value) {
    return refusal(raw_header(3, 0, 1) + raw_key("general.alignment", type, value));
  };
  EXPECT_EQ(with_alignment(Type::kUint32, raw<uint32_t>(24)),
            "key 'general.alignment': wants a power of two, found 24");
  EXPECT_EQ(with_alignment(Type::kUint32, raw<uint32_t>(0)),
            "key 'general.alignment': wants a power of two, found 0");
  EXPECT_EQ(with_alignment(Type::kUint64, raw<uint64_t>(32)),
            "key 'general.alignment': wants uint32, found uint64");
  EXPECT_EQ(with_alignment(Type::kUint32, raw<uint32_t>(1u << 31)),
            "");  // allowed, and no tensor needs it
}

TEST_F(HostileGguf, Shapes) {
  const auto with_shape = [&](const std::vector<int64_t>& shape, uint32_t type = 0) {
    return refusal_of_tensors({raw_tensor("w", shape, type, 0)}, 64);
  };
  EXPECT_NE(with_shape({1, 1, 1, 1, 1}).find("5 dimensions; at most 4 are possible"),
            std::string::npos);
  EXPECT_NE(with_shape({-1}).find("dimension 0 is -1; it must be positive"), std::string::npos);
  EXPECT_NE(with_shape({4, 0}).find("dimension 1 is 0; it must be positive"), std::string::npos);
  EXPECT_NE(with_shape({int64_t{1} << 32, int64_t{1} << 31}).find("does not fit 63 bits"),
            std::string::npos);
  EXPECT_NE(with_shape({std::numeric_limits<int64_t>::min()}).find("must be positive"),
            std::string::npos);
  // 2^62 weights are a number, 2^64 bytes are none.
  EXPECT_NE(with_shape({int64_t{1} << 62}).find("wants 4611686018427387904 weights of F32"),
            std::string::npos);
  EXPECT_NE(with_shape({48}, 2).find("rows of 48 weights cannot be Q4_0, whose blocks hold 32"),
            std::string::npos);
  EXPECT_NE(with_shape({1}, 4).find("unknown tensor type 4"), std::string::npos);
}

TEST_F(HostileGguf, Offsets) {
  const auto with_offset = [&](uint64_t offset) {
    return refusal_of_tensors({raw_tensor("w", {8}, 0, offset)}, 64);
  };
  EXPECT_EQ(with_offset(32), "");
  EXPECT_EQ(with_offset(64),
            "tensor 'w': wants 8 weights of F32 at byte 64 of the data section, which starts at "
            "byte 64 and has 64 "
            "bytes");
  EXPECT_EQ(with_offset(16), "tensor 'w': offset 16 is no multiple of the alignment 32");
  EXPECT_NE(with_offset(uint64_t{1} << 63).find("lies past the end of the file"),
            std::string::npos);
  EXPECT_NE(with_offset(~uint64_t{31}).find("lies past the end of the file"), std::string::npos);
  EXPECT_NE(with_offset((uint64_t{1} << 63) - 32).find("wants 8 weights of F32"),
            std::string::npos);
}

TEST_F(HostileGguf, Overlap) {
  const std::vector<std::string> rows = {raw_tensor("a", {16}, 0, 0), raw_tensor("b", {8}, 0, 32)};
  EXPECT_EQ(refusal_of_tensors(rows, 64),
            "byte 128: tensor 'b' overlaps tensor 'a', which ends at byte 160");
}

TEST_F(HostileGguf, WhatIsNoFile) {
  EXPECT_THROW(GgufFile::open(folder_.path()), Error);
  EXPECT_THROW(GgufFile::open(folder_.file("none")), Error);
  EXPECT_THROW(GgufFile::open("/dev/zero"), Error);
}

}  // namespace
}  // namespace nibble
