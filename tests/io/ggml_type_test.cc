#include "io/ggml_type.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(GgmlType, NamesAndNumbersFindTheSameRow) {
  int known = 0;
  for (uint32_t number = 0; number < 64; ++number) {
    const GgmlTypeInfo* info = find_ggml_type(number);
    if (!info) continue;
    ++known;
    EXPECT_EQ(static_cast<uint32_t>(info->type), number);
    EXPECT_EQ(find_ggml_type(info->name), info);
  }
  EXPECT_EQ(known, 35);
}

TEST(GgmlType, NamesAreFoundInAnyCase) {
  EXPECT_EQ(find_ggml_type("q4_k")->type, GgmlType::kQ4_K);
  EXPECT_EQ(find_ggml_type("Bf16")->type, GgmlType::kBF16);
  EXPECT_EQ(find_ggml_type("q4_2"), nullptr);
  EXPECT_EQ(find_ggml_type(""), nullptr);
}

TEST(GgmlType, TypesThatLlamaCppRemovedAreUnknown) {
  for (const uint32_t number : {4u, 5u, 31u, 32u, 33u, 36u, 37u, 38u, 43u, 0xffffffffu})
    EXPECT_EQ(find_ggml_type(number), nullptr) << number;
}

TEST(GgmlType, RowBytesFollowTheBlocks) {
  EXPECT_EQ(row_bytes(GgmlType::kF32, 3), 12);
  EXPECT_EQ(row_bytes(GgmlType::kQ4_0, 64), 36);
  EXPECT_EQ(row_bytes(GgmlType::kQ2_0, 64), 18);
  EXPECT_EQ(row_bytes(GgmlType::kQ6_K, 512), 420);
}

}  // namespace
}  // namespace nibble
