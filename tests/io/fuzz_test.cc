// Some thousand mutated files through the readers, seeded: what the fuzzers of tests/fuzz do
// without end, in a second. The sanitizer build is what sees a read out of bounds; this one sees
// crashes and exceptions that are no Error.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <random>

#include "io/atomic_file.h"
#include "tests/fuzz/inputs.h"

namespace nibble {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr int kRounds = 5000;
// Where sizes and offsets break: 0, 1, powers of two and their neighbours, the ends of both kinds
// of integers.
constexpr uint64_t kNumbers[] = {0,
                                 1,
                                 2,
                                 7,
                                 31,
                                 32,
                                 0x7f,
                                 0xff,
                                 0x7fffffff,
                                 0x80000000,
                                 0xffffffff,
                                 uint64_t{1} << 32,
                                 uint64_t{1} << 40,
                                 uint64_t{1} << 62,
                                 (uint64_t{1} << 63) - 1,
                                 uint64_t{1} << 63,
                                 ~uint64_t{0} - 31,
                                 ~uint64_t{0}};

class Mutator {
 public:
  Bytes mutate(Bytes bytes) {
    for (int changes = 1 + below(3); changes > 0 && !bytes.empty(); --changes) change(bytes);
    return bytes;
  }

 private:
  int below(size_t limit) { return static_cast<int>(random_() % limit); }

  void change(Bytes& bytes) {
    const int at = below(bytes.size());
    switch (below(6)) {
      case 0:
        bytes[at] ^= static_cast<uint8_t>(1 << below(8));
        break;
      case 1:
        bytes[at] = static_cast<uint8_t>(random_());
        break;
      case 2: {
        const size_t width = below(2) == 0 ? 4 : 8;
        const uint64_t number = kNumbers[below(std::size(kNumbers))];
        if (at + width <= bytes.size()) std::memcpy(bytes.data() + at, &number, width);
        break;
      }
      case 3:
        bytes.resize(at);
        break;
      case 4:
        bytes.insert(bytes.begin() + at, 1 + below(16), static_cast<uint8_t>(random_()));
        break;
      case 5: {  // a piece of the file once more
        const Bytes piece(bytes.begin() + at,
                          bytes.begin() + at + std::min<size_t>(64, bytes.size() - at));
        bytes.insert(bytes.begin() + below(bytes.size()), piece.begin(), piece.end());
        break;
      }
    }
  }

  std::mt19937 random_{20};
};

Bytes read_bytes(const std::string& path) {
  const std::string text = read_file(path);
  std::filesystem::remove(path);
  return {text.begin(), text.end()};
}

Bytes small_gguf() {
  GgufMetadata metadata;
  metadata.set("general.architecture", std::string("llama"));
  metadata.set("general.alignment", uint32_t{32});
  metadata.set("a.float", 0.5f);
  metadata.set("a.bool", true);
  metadata.set("a.strings",
               GgufArray{GgufValueType::kString, std::vector<std::string>{"x", "yz", ""}});
  metadata.set("a.floats", GgufArray{GgufValueType::kFloat32, std::vector<float>{1, 2, 3}});
  const std::string path = testing::TempDir() + "nibble_fuzz.gguf";
  GgufWriter writer(path, metadata,
                    {{"w", {32, 2}, GgmlType::kQ4_0}, {"norm", {3}, GgmlType::kF32}});
  writer.write(std::vector<std::byte>(2 * 18, std::byte{7}));
  writer.write(std::vector<std::byte>(3 * 4, std::byte{9}));
  writer.finish();
  return read_bytes(path);
}

Bytes small_safetensors() {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const auto data = std::as_bytes(std::span(values));
  const std::string path = testing::TempDir() + "nibble_fuzz.safetensors";
  write_safetensors(path, {{"w", "F32", {2, 3}, data}, {"codes", "U8", {5}, data.first(5)}},
                    {{"step", "1"}});
  return read_bytes(path);
}

void fuzz(const Bytes& whole, const std::function<bool(std::span<const uint8_t>)>& read) {
  ASSERT_TRUE(read(whole));
  Mutator mutator;
  int accepted = 0;
  for (int round = 0; round < kRounds; ++round) accepted += read(mutator.mutate(whole));
  // Both must happen, or the mutations reach only one side of the checks.
  EXPECT_GT(accepted, kRounds / 100);
  EXPECT_LT(accepted, kRounds * 9 / 10);
}

TEST(Fuzz, Gguf) { fuzz(small_gguf(), read_gguf); }
TEST(Fuzz, Safetensors) { fuzz(small_safetensors(), read_safetensors); }

}  // namespace
}  // namespace nibble
