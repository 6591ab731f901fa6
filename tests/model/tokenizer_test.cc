// Tokenizers against llama.cpp's own vectors (ggml-vocab-*.gguf.inp/.out), and against metadata
// that is not what it should be.
#include "model/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "io/atomic_file.h"
#include "tests/model/tokenizer_metadata.h"

namespace nibble {
namespace {

const std::string kShared = std::string(NIBBLE_SOURCE_DIR) + "/../shared/data/";

struct Vector {
  std::string text;
  std::vector<int32_t> ids;
};

/// Texts in NAME.inp are separated by a marker line, their ids in NAME.out are one line each.
std::vector<Vector> read_vectors(const std::string& name) {
  const std::string separator = "\n__ggml_vocab_test__\n";
  std::string texts = read_file(name + ".inp");
  std::istringstream lines(read_file(name + ".out"));
  std::vector<Vector> vectors;
  std::string line;
  for (size_t end; (end = texts.find(separator)) != std::string::npos;
       texts.erase(0, end + separator.size())) {
    std::getline(lines, line);
    std::istringstream numbers(line);
    Vector vector = {texts.substr(0, end), {}};
    for (int32_t id; numbers >> id;) vector.ids.push_back(id);
    vectors.push_back(vector);
  }
  return vectors;
}

void expect_vectors(const Tokenizer& tokenizer, const std::string& name) {
  const std::vector<Vector> vectors = read_vectors(name);
  ASSERT_EQ(vectors.size(), 46u);
  for (const Vector& vector : vectors) {
    EXPECT_EQ(tokenizer.encode(vector.text, false, false), vector.ids) << "'" << vector.text << "'";
    EXPECT_EQ(tokenizer.decode(vector.ids), vector.text);
  }
}

TEST(Tokenizer, Gpt2Vectors) {
  const std::string name = kShared + "ggml-vocab/ggml-vocab-gpt-2.gguf";
  if (!std::filesystem::exists(name)) GTEST_SKIP() << "no " << name;
  expect_vectors(*Tokenizer::from_metadata(GgufFile::open(name).metadata()), name);
}

/// Qwen2 and Qwen3 share vocabulary, merges and pre-tokenizer.
TEST(Tokenizer, Qwen2Vectors) {
  const std::string folder = kShared + "hf/Qwen3-4B/";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no " << folder;
  std::vector<std::string> tokens, merges;
  const auto vocabulary = nlohmann::json::parse(read_file(folder + "vocab.json"));
  tokens.resize(vocabulary.size());
  for (const auto& [text, id] : vocabulary.items()) tokens.at(id.get<size_t>()) = text;
  std::istringstream lines(read_file(folder + "merges.txt"));
  for (std::string line; std::getline(lines, line);)
    if (!line.starts_with("#version") && !line.empty()) merges.push_back(line);
  expect_vectors(*Tokenizer::from_metadata(bpe_metadata("qwen2", tokens, merges)),
                 kShared + "ggml-vocab/ggml-vocab-qwen2.gguf");
}

TEST(Tokenizer, KnowsItsSpecialTokens) {
  const std::string name = kShared + "ggml-vocab/ggml-vocab-gpt-2.gguf";
  if (!std::filesystem::exists(name)) GTEST_SKIP() << "no " << name;
  const auto tokenizer = Tokenizer::from_metadata(GgufFile::open(name).metadata());
  EXPECT_EQ(tokenizer->vocab_size(), 50257);
  EXPECT_EQ(tokenizer->bos(), 50256);
  EXPECT_EQ(tokenizer->eos(), 50256);
  EXPECT_FALSE(tokenizer->add_bos());
  EXPECT_TRUE(tokenizer->is_end_of_generation(50256));
  EXPECT_FALSE(tokenizer->is_end_of_generation(11));
  const std::vector<int32_t> ids = tokenizer->encode("a<|endoftext|>b", false, true);
  EXPECT_EQ(ids, (std::vector<int32_t>{64, 50256, 65}));
  EXPECT_EQ(tokenizer->decode(ids), "ab");
  EXPECT_EQ(tokenizer->decode(ids, true), "a<|endoftext|>b");
  EXPECT_GT(tokenizer->encode("a<|endoftext|>b", false, false).size(), 3u);
}

std::string error_of(const std::function<void(GgufMetadata&)>& spoil) {
  GgufMetadata metadata = bpe_metadata("gpt-2", byte_tokens({"ab"}), {"a b"});
  spoil(metadata);
  try {
    Tokenizer::from_metadata(metadata);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Tokenizer, RefusesMetadataThatDoesNotFit) {
  const auto expect = [](const std::string& message,
                         const std::function<void(GgufMetadata&)>& spoil) {
    EXPECT_NE(error_of(spoil).find(message), std::string::npos) << error_of(spoil);
  };
  expect("no error", [](GgufMetadata&) {});
  expect("tokenizer.ggml.model", [](GgufMetadata& m) { m.erase("tokenizer.ggml.model"); });
  expect("tokenizer.ggml.model is 'bert'",
         [](GgufMetadata& m) { m.set("tokenizer.ggml.model", std::string("bert")); });
  expect("tokenizer.ggml.tokens", [](GgufMetadata& m) { m.erase("tokenizer.ggml.tokens"); });
  expect("the list is empty", [](GgufMetadata& m) { m.set("tokenizer.ggml.tokens", strings({})); });
  expect("tokenizer.ggml.merges", [](GgufMetadata& m) { m.erase("tokenizer.ggml.merges"); });
  expect("tokens 0 and 2 are both 'x'", [](GgufMetadata& m) {
    m.set("tokenizer.ggml.tokens", strings({"x", "y", "x"}));
  });
  expect("wants one type for each of 257 tokens, found 2", [](GgufMetadata& m) {
    m.set("tokenizer.ggml.token_type", ints({1, 1}));
  });
  expect("wants an id below 257, found 257",
         [](GgufMetadata& m) { m.set("tokenizer.ggml.bos_token_id", uint32_t{257}); });
  expect("wants an id below 257, found -1",
         [](GgufMetadata& m) { m.set("tokenizer.ggml.eos_token_id", int32_t{-1}); });
  expect("no pre-tokenizer 'qwen' (did you mean 'qwen2'?)",
         [](GgufMetadata& m) { m.set("tokenizer.ggml.pre", std::string("qwen")); });
  expect("merge 1 is 'ab'", [](GgufMetadata& m) {
    m.set("tokenizer.ggml.merges", strings({"a b", "ab"}));
  });
  expect("merge 0 is ''", [](GgufMetadata& m) { m.set("tokenizer.ggml.merges", strings({""})); });
}

}  // namespace
}  // namespace nibble
