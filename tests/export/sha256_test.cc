#include "export/sha256.h"

#include <gtest/gtest.h>

#include "io/atomic_file.h"

namespace nibble {
namespace {

// FIPS 180-4's examples; the rest is what coreutils' sha256sum prints.
TEST(Sha256, KnownTexts) {
  EXPECT_EQ(sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

// Lengths around a block's end, where the padding needs a second block.
TEST(Sha256, PiecesEqualTheWhole) {
  for (size_t length = 50; length < 140; ++length) {
    const std::string text(length, 'x');
    Sha256 pieces;
    for (size_t at = 0; at < length; at += 7)
      pieces.update(std::as_bytes(std::span(text).subspan(at, std::min<size_t>(7, length - at))));
    EXPECT_EQ(pieces.finish(), sha256(text)) << length;
  }
  EXPECT_EQ(sha256(std::string(55, 'x')),
            "d5e285683cd4efc02d021a5c62014694958901005d6f71e89e0989fac77e4072");
  EXPECT_EQ(sha256(std::string(56, 'x')),
            "04c26261370ee7541549d16dee320c723e3fd14671e66a099afe0a377c16888e");
  EXPECT_EQ(sha256(std::string(64, 'x')),
            "7ce100971f64e7001e8fe5a51973ecdfe1ced42befe7ee8d5fd6219506b5393c");
}

TEST(Sha256, OfAFile) {
  const std::string path = testing::TempDir() + "nibble_sha256_file";
  write_file(path, "abc");
  EXPECT_EQ(sha256_file(path), sha256("abc"));
}

}  // namespace
}  // namespace nibble
