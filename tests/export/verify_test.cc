#include "export/verify.h"

#include "base/error.h"
#include "io/atomic_file.h"
#include "tests/export/tiny_run.h"

namespace nibble {
namespace {

std::string export_usual(const TinyRun& run) {
  const std::string out = test_path("out.gguf");
  export_checkpoint(run.source(), run.plan, run.checkpoint, out, {});
  return out;
}

Verification verify_against(const GgufFile& file, const TinyRun& run,
                            const TensorDecoder& on_gpu = {}) {
  const TrainedWeights trained = trained_weights(run.checkpoint);
  return verify(file, &trained, on_gpu);
}

TensorVerification of(const Verification& result, const std::string& name) {
  for (const TensorVerification& tensor : result.tensors)
    if (tensor.name == name) return tensor;
  throw std::runtime_error("no tensor " + name);
}

// The file with one bit of a tensor's data flipped.
std::string with_flipped_bit(const std::string& path, const std::string& tensor, int64_t byte,
                             int bit) {
  std::string bytes = read_file(path);
  bytes[GgufFile::open(path).tensor(tensor).file_offset + byte] ^= static_cast<char>(1 << bit);
  const std::string changed = test_path("changed.gguf");
  write_file(changed, bytes);
  return changed;
}

TEST(Verify, AcceptsWhatWasExported) {
  const TinyRun run = make_usual_run();
  const GgufFile file = GgufFile::open(export_usual(run));
  const Verification result = verify_against(file, run);
  EXPECT_TRUE(result.passed());
  EXPECT_EQ(result.weights_hashed, result.weights);
  EXPECT_EQ(of(result, "blk.0.attn_q.weight").checkpoint, VerifyOutcome::kEqual);
  EXPECT_EQ(of(result, "blk.0.ffn_norm.weight").checkpoint, VerifyOutcome::kAbsent);
  EXPECT_EQ(of(result, "blk.0.ffn_norm.weight").hash, VerifyOutcome::kEqual);
}

TEST(Verify, NamesTheChangedWeight) {
  const TinyRun run = make_usual_run();
  // Q4_0: row of two blocks of 18 bytes; byte 4 of row 3's first block holds the codes of columns 2
  // and 18.
  const std::string path =
      with_flipped_bit(export_usual(run), "blk.0.attn_q.weight", 3 * 36 + 4, 7);
  const GgufFile file = GgufFile::open(path);
  const Verification alone = verify(file, nullptr);
  EXPECT_FALSE(alone.passed());
  EXPECT_EQ(of(alone, "blk.0.attn_q.weight").hash, VerifyOutcome::kDifferent);
  EXPECT_TRUE(of(alone, "token_embd.weight").passed());
  const Verification against = verify_against(file, run);
  const std::string problem = of(against, "blk.0.attn_q.weight").problem;
  EXPECT_NE(problem.find("row 3, column 18: wanted "), std::string::npos) << problem;
}

TEST(Verify, ComparesWithTheGpusDecode) {
  const TinyRun run = make_usual_run();
  const GgufFile file = GgufFile::open(export_usual(run));
  const auto sound = [](GgmlType type, std::span<const std::byte> bytes, std::span<float> out) {
    decode_tensor(type, bytes, out);
  };
  const Verification equal = verify(file, nullptr, sound);
  EXPECT_TRUE(equal.passed());
  EXPECT_EQ(equal.weights_on_gpu, equal.weights);
  EXPECT_EQ(of(equal, "token_embd.weight").gpu, VerifyOutcome::kEqual);

  const auto broken = [&](GgmlType type, std::span<const std::byte> bytes, std::span<float> out) {
    sound(type, bytes, out);
    if (type == GgmlType::kQ4_0) out[2 * 64 + 5] = std::nextafter(out[2 * 64 + 5], 1e9f);
  };
  const Verification different = verify(file, nullptr, broken);
  EXPECT_FALSE(different.passed());
  const TensorVerification tensor = of(different, "blk.0.attn_q.weight");
  EXPECT_EQ(tensor.gpu, VerifyOutcome::kDifferent);
  EXPECT_NE(tensor.problem.find("row 2, column 5: wanted "), std::string::npos) << tensor.problem;
  EXPECT_TRUE(of(different, "token_embd.weight").passed());

  const Verification without = verify(file, nullptr);
  EXPECT_EQ(without.weights_on_gpu, 0);
  EXPECT_EQ(of(without, "token_embd.weight").gpu, VerifyOutcome::kAbsent);
}

TEST(Verify, ARealGpuDecodesTheSame) {
  const CudaGpus gpus = cuda_gpus();
  if (gpus.count == 0) GTEST_SKIP() << gpus.problem;
  const TinyRun run = make_usual_run();
  const GgufFile file = GgufFile::open(export_usual(run));
  EXPECT_TRUE(
      verify_against(file, run,
                     [](GgmlType type, std::span<const std::byte> bytes, std::span<float> out) {
                       decode_tensor(type, bytes, out, Device{true, 0});
                     })
          .passed());
}

// 0 * infinity is a NaN of the processor's own bits; the GPU has others.
TEST(Verify, NansAreEqualWhateverTheirBits) {
  const TinyRun run = make_usual_run();
  std::string bytes = read_file(export_usual(run));
  const std::string changed = test_path("changed.gguf");
  const int64_t at = GgufFile::open(test_path("out.gguf")).tensor("token_embd.weight").file_offset;
  bytes[at] = '\x00';
  bytes[at + 1] = '\x7e';  // d of the first block is a NaN
  write_file(changed, bytes);
  const GgufFile file = GgufFile::open(changed);
  const Verification result = verify(
      file, nullptr, [](GgmlType type, std::span<const std::byte> data, std::span<float> out) {
        decode_tensor(type, data, out);
        for (float& weight : out)
          if (std::isnan(weight)) weight = -std::numeric_limits<float>::quiet_NaN();
      });
  EXPECT_EQ(of(result, "token_embd.weight").gpu, VerifyOutcome::kEqual);
}

TEST(Verify, NoticesAChangeInWhatWasNotTrained) {
  const TinyRun run = make_usual_run();
  const GgufFile file =
      GgufFile::open(with_flipped_bit(export_usual(run), "blk.0.ffn_norm.weight", 40, 0));
  EXPECT_EQ(of(verify(file, nullptr), "blk.0.ffn_norm.weight").hash, VerifyOutcome::kDifferent);
}

TEST(Verify, NamesWhatIsNotFinite) {
  const TinyRun run = make_usual_run();
  std::string bytes = read_file(export_usual(run));
  const std::string changed = test_path("changed.gguf");
  const int64_t at = GgufFile::open(test_path("out.gguf")).tensor("token_embd.weight").file_offset;
  bytes[at + 34] = '\x00';
  bytes[at + 35] = '\x7c';  // d of the second block = infinity
  write_file(changed, bytes);
  const GgufFile file = GgufFile::open(changed);
  const TensorVerification tensor = of(verify(file, nullptr), "token_embd.weight");
  EXPECT_FALSE(tensor.finite);
  EXPECT_EQ(tensor.problem.rfind("row 0, column ", 0), 0u) << tensor.problem;
}

TEST(Verify, FileWithoutHashesIsOnlyDecoded) {
  const TinyRun run = make_usual_run();
  const GgufFile file = run.source();
  const Verification result = verify(file, nullptr);
  EXPECT_TRUE(result.passed());
  EXPECT_EQ(result.weights_hashed, 0);
  EXPECT_EQ(result.weights_compared, 0);
}

TEST(Verify, NamesAMissingTensor) {
  TinyRun run = make_usual_run();
  const GgufFile file = GgufFile::open(export_usual(run));
  run.checkpoint.tensors.push_back(run.checkpoint.tensors.front());
  run.checkpoint.tensors.back().name = "blk.9.ffn_up.weight";
  const Verification result = verify_against(file, run);
  EXPECT_FALSE(result.passed());
  EXPECT_EQ(result.missing, std::vector<std::string>{"blk.9.ffn_up.weight"});
}

TEST(Verify, RefusesHashesOfAnotherFile) {
  const TinyRun run = make_usual_run();
  GgufMetadata metadata;
  metadata.set("nibble.tensor_hashes",
               GgufArray{GgufValueType::kUint64, std::vector<uint64_t>{1, 2}});
  const std::string path = test_path("odd.gguf");
  GgufWriter writer(path, metadata, {{"a", {2}, GgmlType::kF32}});
  const std::vector<float> values = noise(2, 0);
  writer.write(std::as_bytes(std::span(values)));
  writer.finish();
  const GgufFile file = GgufFile::open(path);
  EXPECT_THROW(verify(file, nullptr), Error);
}

}  // namespace
}  // namespace nibble
