#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "base/error.h"
#include "model/model.h"
#include "tests/io/temporary_folder.h"
#include "tests/model/tiny_llama.h"

namespace nibble {

class LlamaTest : public testing::Test {
 protected:
  std::unique_ptr<Model> load(const TinyLlama& tiny) {
    tiny.write(path_);
    return load_model(GgufFile::open(path_));
  }
  /// What loading says, or "" when it succeeds.
  std::string complaint(const TinyLlama& tiny) {
    try {
      load(tiny);
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }

  TemporaryFolder folder_;
  std::string path_ = folder_.file("tiny.gguf");
};

}  // namespace nibble
