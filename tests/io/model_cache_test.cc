#include "io/model_cache.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/error.h"
#include "io/atomic_file.h"
#include "tests/io/temporary_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

class ModelCache : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "LLAMA_CACHE"}) ::unsetenv(name);
    ::setenv("XDG_CACHE_HOME", folder_.file("cache").c_str(), 1);
  }
  /// As huggingface_hub lays it out: a link to a blob.
  std::string add(const std::string& repository, const std::string& commit,
                  const std::string& file) {
    const fs::path base = fs::path(hub_) / ("models--" + repository);
    const fs::path blob = base / "blobs" / (commit + file),
                   link = base / "snapshots" / commit / file;
    fs::create_directories(blob.parent_path());
    fs::create_directories(link.parent_path());
    write_file(blob.string(), "x");
    fs::create_symlink(fs::relative(blob, link.parent_path()), link);
    return link.string();
  }
  void point_main_at(const std::string& repository, const std::string& commit) {
    const fs::path refs = fs::path(hub_) / ("models--" + repository) / "refs";
    fs::create_directories(refs);
    write_file((refs / "main").string(), commit);
  }
  static std::string refusal(const std::string& given) {
    try {
      return "found " + find_model(given);
    } catch (const Error& error) {
      return error.what();
    }
  }

  TemporaryFolder folder_;
  std::string hub_ = folder_.file("cache/huggingface/hub");
};

TEST_F(ModelCache, PathsStayAsTheyAre) {
  write_file(folder_.file("model.gguf"), "x");
  for (const std::string& path :
       {folder_.file("model.gguf"), folder_.path(), std::string("nowhere"),
        std::string("models/nowhere.gguf"), std::string("/a/b"), std::string("../a/b"),
        std::string("a/b/c"), std::string("a/b:")})
    EXPECT_EQ(find_model(path), path);
}

TEST_F(ModelCache, SnapshotThatMainNames) {
  add("Qwen--Qwen3-0.6B", "new", "config.json");
  const std::string file = add("Qwen--Qwen3-0.6B", "old", "config.json");
  point_main_at("Qwen--Qwen3-0.6B", "old\n");
  EXPECT_EQ(find_model("Qwen/Qwen3-0.6B"), fs::path(file).parent_path());
  fs::rename(hub_, folder_.file("elsewhere"));
  EXPECT_NE(refusal("Qwen/Qwen3-0.6B").find("download it with: hf download Qwen/Qwen3-0.6B"),
            std::string::npos);
  ::setenv("HF_HUB_CACHE", folder_.file("elsewhere").c_str(), 1);
  EXPECT_TRUE(find_model("Qwen/Qwen3-0.6B").starts_with(folder_.file("elsewhere")));
  ::unsetenv("HF_HUB_CACHE");
  ::setenv("HUGGINGFACE_HUB_CACHE", folder_.file("elsewhere").c_str(), 1);  // its older name
  EXPECT_TRUE(find_model("Qwen/Qwen3-0.6B").starts_with(folder_.file("elsewhere")));
}

TEST_F(ModelCache, GgufFileByItsTag) {
  add("o--n-GGUF", "c", "mmproj-n-f16.gguf");
  const std::string q4 = add("o--n-GGUF", "c", "n-Q4_K_M.gguf");
  EXPECT_EQ(find_model("o/n-GGUF"), q4);
  add("o--n-GGUF", "c", "F16/n-F16-00002-of-00002.gguf");
  const std::string f16 = add("o--n-GGUF", "c", "F16/n-F16-00001-of-00002.gguf");
  EXPECT_EQ(find_model("o/n-GGUF:f16"), f16);
  EXPECT_EQ(find_model("o/n-GGUF:Q4_K_M"), q4);
  EXPECT_NE(
      refusal("o/n-GGUF").find("could be n-F16-00001-of-00002.gguf, n-Q4_K_M.gguf; say which"),
      std::string::npos)
      << refusal("o/n-GGUF");
  EXPECT_NE(refusal("o/n-GGUF:Q8_0").find("hf download o/n-GGUF --include '*Q8_0*'"),
            std::string::npos);
}

TEST_F(ModelCache, ATagIsAWholeWordWhereItCanBe) {
  add("o--n-GGUF", "c", "n-BF16.gguf");
  const std::string f16 = add("o--n-GGUF", "c", "n-F16.gguf");
  add("o--n-GGUF", "c", "n-Q2_K_L.gguf");
  const std::string q2 = add("o--n-GGUF", "c", "n-Q2_K.gguf");
  EXPECT_EQ(find_model("o/n-GGUF:F16"), f16);
  EXPECT_EQ(find_model("o/n-GGUF:Q2_K"), q2);
}

TEST_F(ModelCache, GgufFilesBesideAConfigurationAreTheModel) {
  add("o--n-GGUF", "c", "config.json");
  const std::string file = add("o--n-GGUF", "c", "n-Q8_0.gguf");
  EXPECT_EQ(find_model("o/n-GGUF"), file);
  const std::string weights = add("o--n-GGUF", "c", "model.safetensors");
  EXPECT_EQ(find_model("o/n-GGUF"), fs::path(weights).parent_path());
}

TEST_F(ModelCache, AMissingPartIsToBeDownloaded) {
  const std::string config = add("o--n", "c", "config.json");
  const fs::path snapshot = fs::path(config).parent_path();
  write_file((snapshot / "model.safetensors.index.json").string(),
             R"({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})");
  add("o--n", "c", "model-1.safetensors");
  EXPECT_NE(refusal("o/n").find("hf download o/n"), std::string::npos) << refusal("o/n");
  add("o--n", "c", "model-2.safetensors");
  EXPECT_EQ(find_model("o/n"), snapshot);
}

TEST_F(ModelCache, WhatLlamaCppDownloadedBefore) {
  const std::string file = folder_.file("llama/o_n-GGUF_n-Q8_0.gguf");
  fs::create_directories(folder_.file("llama"));
  write_file(file, "x");
  ::setenv("LLAMA_CACHE", folder_.file("llama").c_str(), 1);
  EXPECT_EQ(find_model("o/n-GGUF"), file);
  EXPECT_EQ(find_model("o/n-GGUF:q8_0"), file);
}

TEST_F(ModelCache, TheWorkingFolderIsNoSnapshot) {
  const fs::path before = fs::current_path();
  write_file(folder_.file("config.json"), "{}");
  fs::current_path(folder_.path());
  EXPECT_NE(refusal("o/n").find("hf download o/n"), std::string::npos) << refusal("o/n");
  fs::current_path(before);
}

TEST_F(ModelCache, ATypoInAPathIsSaidToBeOne) {
  const fs::path before = fs::current_path();
  fs::create_directories(folder_.file("o/name"));
  fs::current_path(folder_.path());
  EXPECT_NE(refusal("o/nane").find("no such file or folder (did you mean 'name'?), and in"),
            std::string::npos)
      << refusal("o/nane");
  EXPECT_NE(refusal("p/nane").find("no such file or folder, and in"), std::string::npos);
  fs::current_path(before);
}

TEST_F(ModelCache, ABrokenLinkIsNoFile) {
  fs::remove(fs::canonical(add("o--n", "c", "n.gguf")));
  EXPECT_NE(refusal("o/n").find("hf download o/n"), std::string::npos);
}

}  // namespace
}  // namespace nibble
