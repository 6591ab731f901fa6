#include "quant/mix/file_type.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(ModelName, IsTheFilesWithoutItsTypeAndPart) {
  EXPECT_EQ(model_name("models/SmolLM2-135M-Instruct.Q4_1.gguf"), "SmolLM2-135M-Instruct");
  EXPECT_EQ(model_name("tiny-f32.gguf"), "tiny");
  EXPECT_EQ(model_name("tiny-Q4_K_M.gguf"), "tiny");
  EXPECT_EQ(model_name("big-F16-00001-of-00003.gguf"), "big");
  EXPECT_EQ(model_name("phi-2.gguf"), "phi-2");  // 2 is Q4_0's number
  EXPECT_EQ(model_name("f32.gguf"), "f32");
  EXPECT_EQ(model_name("a.b-c/model.v3.gguf"), "model.v3");
}

}  // namespace
}  // namespace nibble
