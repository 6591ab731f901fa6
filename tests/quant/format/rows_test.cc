// Whole tensors: pieces on threads, and what is refused.
#include "quant/format/rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/threads.h"
#include "format_checks.h"
#include "quant/format/stream.h"
#include "quant/format/targets.h"

namespace nibble {
namespace {

/// What an Error of `call` says, or "".
template <class Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::vector<float> rows_of_length(int64_t num_rows, int64_t length) {
  std::vector<float> weights;
  for (int64_t row = 0; row < num_rows; ++row) {
    const std::vector<float> values = gaussian_row(static_cast<uint32_t>(row), 0.02f);
    weights.insert(weights.end(), values.begin(), values.begin() + length);
  }
  return weights;
}

std::vector<std::byte> encode_row_by_row(const Format& format, const std::vector<float>& weights,
                                         int64_t length, const std::vector<float>& importance,
                                         EncodeMethod method) {
  std::vector<std::byte> bytes;
  for (size_t first = 0; first < weights.size(); first += length) {
    const std::vector<float> row(weights.begin() + first, weights.begin() + first + length);
    const auto encoded = encode(format, row, importance, method);
    bytes.insert(bytes.end(), encoded.begin(), encoded.end());
  }
  return bytes;
}

/// Blocks in a row, again and again, and the last time a part of them.
template <class T>
std::vector<T> repeated(const std::vector<T>& some, size_t count) {
  std::vector<T> all(count);
  for (size_t i = 0; i < count; ++i) all[i] = some[i % some.size()];
  return all;
}

void check_many_weights(const Format& format, const Format& on_target, const char* target) {
  constexpr int64_t kPeriod = 3 * 256;  // weights
  const std::vector<std::byte> period = random_blocks(format, kPeriod / format.block_size);
  const int64_t num_blocks = kStreamedWeights / format.block_size + 1;
  const std::vector<std::byte> blocks = repeated(period, num_blocks * format.block_bytes);
  const std::vector<float> expected =
      repeated(decode(format, period), num_blocks * format.block_size);
  // Where the first weight lies: aligned as streamed stores want it, and not.
  std::vector<float> out(expected.size() + 1);
  for (const size_t first : {size_t{0}, size_t{1}}) {
    std::fill(out.begin(), out.end(), -1.0f);
    on_target.decode(blocks.data(), out.data() + first, num_blocks);
    EXPECT_EQ(std::memcmp(out.data() + first, expected.data(), expected.size() * sizeof(float)), 0)
        << format.name << " on " << target << " from weight " << first;
  }
}

TEST(Rows, ManyWeightsDecodeAsFewDo) {
  for (const Target& target : targets()) {
    if (!target.supported) continue;
    for (size_t i = 0; i < decoders().size(); ++i)
      check_many_weights(targets()[0].formats[i], target.formats[i], target.name.data());
  }
}

// 768: the search fills its lanes with blocks of two rows.
TEST(Rows, TensorsEqualTheirRowsOnAnyNumberOfThreads) {
  const std::vector<float> weights = rows_of_length(300, 768);
  const int threads = num_threads();
  for (const Format& format : formats()) {
    for (const auto& importance : {std::vector<float>(), std::vector<float>(768, 2.0f)}) {
      const auto method = importance.empty() ? EncodeMethod::kSearch : EncodeMethod::kGgml;
      const auto expected = encode_row_by_row(format, weights, 768, importance, method);
      for (const int count : {1, 3}) {
        set_num_threads(count);
        const auto bytes = encode_tensor(format.type, weights, 768, importance, method);
        EXPECT_EQ(bytes, expected) << format.name;
        std::vector<float> decoded(weights.size());
        decode_tensor(format.type, bytes, decoded);
        EXPECT_EQ(decoded, decode(format, expected)) << format.name;
      }
    }
  }
  set_num_threads(threads);
}

TEST(Rows, AGpuGivesTheSameBytesAndRefusesTheSame) {
  const CudaGpus gpus = cuda_gpus();
  if (gpus.count == 0) GTEST_SKIP() << gpus.problem;
  const Device gpu = {true, 0};
  std::vector<float> weights = rows_of_length(300, 768);
  for (const Format& format : formats()) {
    const auto bytes = encode_tensor(format.type, weights, 768, {}, EncodeMethod::kSearch);
    EXPECT_EQ(encode_tensor(format.type, weights, 768, {}, EncodeMethod::kSearch, 0, gpu), bytes);
    std::vector<float> decoded(weights.size());
    decode_tensor(format.type, bytes, decoded, gpu);
    EXPECT_EQ(decoded, decode(format, bytes)) << format.name;
  }
  weights[3 * 768 + 17] = std::nanf("");
  EXPECT_EQ(message_of([&] {
              encode_tensor(GgmlType::kQ4_0, weights, 768, {}, EncodeMethod::kRtn, 0, gpu);
            }),
            "row 3, column 17 holds a NaN");
}

TEST(Rows, NameTheRowAndColumnThatIsNotFinite) {
  for (const Format& format : formats()) {
    std::vector<float> weights = rows_of_length(5, 256);
    weights[3 * 256 + 17] = std::nanf("");
    EXPECT_EQ(message_of([&] { encode_tensor(format.type, weights, 256, {}, EncodeMethod::kRtn); }),
              "row 3, column 17 holds a NaN");
    weights[3 * 256 + 17] = -INFINITY;
    EXPECT_EQ(
        message_of([&] { encode_tensor(format.type, weights, 256, {}, EncodeMethod::kRtn, 100); }),
        "row 103, column 17 holds an infinity");
  }
}

TEST(Rows, RefuseAScaleThatOverflows) {
  for (const Format& format : formats()) {
    std::vector<float> weights = rows_of_length(4, 256);
    weights[2 * 256 + 70] = 1e9f;
    for (const auto method : {EncodeMethod::kGgml, EncodeMethod::kRtn, EncodeMethod::kSearch}) {
      const std::string message =
          message_of([&] { encode_tensor(format.type, weights, 256, {}, method); });
      // MXFP4 can hold it, NVFP4 clamps it, as ggml does.
      if (format.type == GgmlType::kF32 || format.type == GgmlType::kBF16 ||
          format.has_byte_scales) {
        EXPECT_EQ(message, "");
      } else {
        EXPECT_NE(message.find("row 2: "), std::string::npos) << format.name << ": " << message;
        EXPECT_NE(message.find("overflows"), std::string::npos) << format.name << ": " << message;
      }
    }
  }
}

TEST(Rows, RefuseSizesThatDoNotFit) {
  const std::vector<float> weights(96);
  std::vector<float> out(64);
  EXPECT_NE(
      message_of([&] { encode_tensor(GgmlType::kQ4_0, weights, 48, {}, EncodeMethod::kRtn); }), "");
  EXPECT_NE(
      message_of([&] { encode_tensor(GgmlType::kQ4_0, weights, 64, {}, EncodeMethod::kRtn); }), "");
  EXPECT_NE(message_of([&] { encode_tensor(GgmlType::kQ4_0, weights, 0, {}, EncodeMethod::kRtn); }),
            "");
  EXPECT_NE(message_of([&] { decode_tensor(GgmlType::kQ4_0, std::vector<std::byte>(35), out); }),
            "");
  EXPECT_EQ(message_of([&] { decode_tensor(GgmlType::kQ4_0, std::vector<std::byte>(36), out); }),
            "");
  EXPECT_NE(message_of([&] { decode_tensor(GgmlType::kQ8_K, std::vector<std::byte>(36), out); }),
            "");
}

TEST(Rows, RefuseImportanceThatIsNone) {
  const std::vector<float> weights(64, 1.0f);
  std::vector<float> importance(32, 1.0f);
  const auto encode_it = [&] {
    encode_tensor(GgmlType::kQ4_0, weights, 32, importance, EncodeMethod::kGgml);
  };
  EXPECT_EQ(message_of(encode_it), "");
  importance[4] = -1.0f;
  EXPECT_NE(message_of(encode_it).find("column 4"), std::string::npos);
  importance[4] = std::nanf("");
  EXPECT_NE(message_of(encode_it).find("column 4"), std::string::npos);
  importance.assign(31, 1.0f);
  EXPECT_NE(message_of(encode_it).find("31"), std::string::npos);
}

}  // namespace
}  // namespace nibble
