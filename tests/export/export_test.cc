#include "export/export.h"

#include <algorithm>

#include "base/checksum.h"
#include "base/error.h"
#include "base/version.h"
#include "export/masters.h"
#include "export/sha256.h"
#include "io/atomic_file.h"
#include "tests/export/tiny_run.h"

namespace nibble {
namespace {

std::vector<float> decoded(const GgufTensor& tensor) {
  std::vector<float> weights(tensor.num_weights());
  decode_tensor(tensor.type, tensor.data, weights);
  return weights;
}

// What the export of this run is refused with. An older file of that name must stay as it was.
std::string refusal(const TinyRun& run, const Checkpoint& checkpoint) {
  const std::string out = test_path("out.gguf");
  write_file(out, "old");
  try {
    export_checkpoint(run.source(), run.plan, checkpoint, out, {});
    ADD_FAILURE() << "was not refused";
  } catch (const Error& error) {
    EXPECT_EQ(read_file(out), "old");
    for (const auto& entry : std::filesystem::directory_iterator(test_path("")))
      EXPECT_EQ(entry.path().string().find(".tmp."), std::string::npos) << entry.path();
    return error.what();
  }
  return "";
}

void expect_contains(const std::string& line, const std::string& part) {
  EXPECT_NE(line.find(part), std::string::npos) << line;
}

TEST(Export, FileHasTheWeightsThatWereTrained) {
  const TinyRun run = make_usual_run();
  const std::string out = test_path("out.gguf");
  const ExportStats stats = export_checkpoint(run.source(), run.plan, run.checkpoint, out, {});
  const GgufFile source = run.source(), file = GgufFile::open(out);
  EXPECT_EQ(stats.num_tensors, 6);
  EXPECT_EQ(stats.num_trained, 4);
  EXPECT_EQ(stats.file_bytes, file.file_bytes());
  ASSERT_EQ(file.tensors().size(), source.tensors().size());
  for (size_t i = 0; i < file.tensors().size(); ++i) {
    const GgufTensor& tensor = file.tensors()[i];
    EXPECT_EQ(tensor.name, source.tensors()[i].name);
    EXPECT_EQ(tensor.shape, source.tensors()[i].shape);
    EXPECT_EQ(tensor.type, run.plan.entries[i].target);
    const TrainedTensor* trained = run.checkpoint.find(tensor.name);
    const torch::Tensor w = trained ? materialized(*trained) : torch::Tensor();
    const std::vector<float> kept = decoded(source.tensors()[i]);
    const auto wanted = trained ? values_of(w) : std::span<const float>(kept);
    const auto difference = first_difference(wanted, decoded(tensor), tensor.row_length());
    EXPECT_FALSE(difference) << tensor.name << ": " << difference->text();
  }
}

TEST(Export, MastersAreWhatStandsBehindTheRounding) {
  const TinyRun run = make_usual_run();
  const Checkpoint masters = masters_of(run.checkpoint);
  const std::string out = test_path("out.gguf");
  EXPECT_EQ(export_checkpoint(run.source(), masters.plan, masters, out, {}).num_trained, 4);
  const GgufFile source = run.source(), file = GgufFile::open(out);
  ASSERT_EQ(file.tensors().size(), source.tensors().size());
  for (const GgufTensor& tensor : file.tensors()) {
    const TrainedTensor* trained = run.checkpoint.find(tensor.name);
    const GgufTensor& before = *source.find_tensor(tensor.name);
    EXPECT_EQ(tensor.type, trained ? GgmlType::kF32 : before.type) << tensor.name;
    const std::vector<float> kept = decoded(before);
    const auto wanted = trained ? values_of(trained->weights) : std::span<const float>(kept);
    const auto difference = first_difference(wanted, decoded(tensor), tensor.row_length());
    EXPECT_FALSE(difference) << tensor.name << ": " << difference->text();
  }
  EXPECT_EQ(file.metadata().get_int("general.file_type"), 0);
}

TEST(Export, KeepsMetadataAndSaysWhereItCameFrom) {
  const TinyRun run = make_usual_run();
  const std::string out = test_path("out.gguf");
  export_checkpoint(run.source(), run.plan, run.checkpoint, out, {"qat", "abc"});
  const GgufFile file = GgufFile::open(out);
  const GgufMetadata& metadata = file.metadata();
  EXPECT_EQ(metadata.get_string("general.architecture"), "llama");
  EXPECT_EQ(metadata.get_strings("tokenizer.ggml.tokens"),
            run.source().metadata().get_strings("tokenizer.ggml.tokens"));
  EXPECT_EQ(metadata.get_int("general.file_type"), run.plan.file_type);
  EXPECT_EQ(metadata.get_int("general.quantization_version"), 2);
  EXPECT_FALSE(metadata.contains("quantize.imatrix.file"));
  EXPECT_EQ(metadata.get_string("nibble.version"), kProgramVersion);
  EXPECT_EQ(metadata.get_string("nibble.method"), "qat");
  EXPECT_EQ(metadata.get_string("nibble.config_hash"), "abc");
  EXPECT_EQ(metadata.get_int("nibble.step"), 7);
  EXPECT_EQ(metadata.get_string("nibble.source_hash"), sha256_file(run.source_path));
}

TEST(Export, AgainIsTheSameFile) {
  const TinyRun run = make_usual_run();
  const std::string saved = test_path("last.safetensors");
  save_checkpoint(saved, run.checkpoint);
  export_checkpoint(run.source(), run.plan, run.checkpoint, test_path("a.gguf"), {});
  export_checkpoint(run.source(), run.plan, saved, test_path("b.gguf"), {});
  EXPECT_EQ(sha256_file(test_path("a.gguf")), sha256_file(test_path("b.gguf")));
}

// An exported file is a source too; what described the first file must not be taken over.
TEST(Export, DropsWhatDescribedTheSource) {
  const TinyRun run = make_usual_run();
  const std::string once = test_path("once.gguf"), twice = test_path("twice.gguf");
  export_checkpoint(run.source(), run.plan, run.checkpoint, once, {"qat", "abc"});
  export_checkpoint(GgufFile::open(once), run.plan, run.checkpoint, twice, {});
  const GgufFile file = GgufFile::open(twice);
  EXPECT_FALSE(file.metadata().contains("nibble.config_hash"));
  EXPECT_EQ(file.metadata().get_string("nibble.source_hash"), sha256_file(once));
}

// Negative controls: one changed bit anywhere in what decides the weights.
class ExportRefuses : public testing::TestWithParam<std::string> {};

void flip_bit(torch::Tensor& tensor, int64_t index, uint32_t mask) {
  tensor = tensor.clone();
  uint32_t* bits = reinterpret_cast<uint32_t*>(tensor.mutable_data_ptr<float>());
  bits[index] ^= mask;
}

TEST(Export, RefusesAChangedScaleRatio) {
  for (const std::string name : {"token_embd.weight", "blk.0.attn_q.weight"}) {
    TinyRun run = make_usual_run();
    flip_bit(run.trained(name).scale_ratios, 2, 1u << 20);
    const std::string line = refusal(run, run.checkpoint);
    expect_contains(line, "tensor '" + name + "'");
    expect_contains(line, "masters, scales or hash were changed");
  }
}

TEST_P(ExportRefuses, Master) {
  TinyRun run = make_usual_run();
  flip_bit(run.trained(GetParam()).weights, 5, 1u << 31);
  expect_contains(refusal(run, run.checkpoint), "tensor '" + GetParam() + "'");
}

TEST_P(ExportRefuses, EveryBitOfTheHash) {
  TinyRun run = make_usual_run();
  for (int bit = 0; bit < 64; ++bit) {
    run.trained(GetParam()).materialized_hash ^= uint64_t{1} << bit;
    expect_contains(refusal(run, run.checkpoint), "tensor '" + GetParam() + "'");
    run.trained(GetParam()).materialized_hash ^= uint64_t{1} << bit;
  }
}

INSTANTIATE_TEST_SUITE_P(Changed, ExportRefuses,
                         testing::Values("token_embd.weight", "blk.0.attn_q.weight",
                                         "blk.0.attn_k.weight"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '.', '_');
                           return name;
                         });

TEST(Export, RefusesAChangedNorm) {
  TinyRun run = make_usual_run();
  flip_bit(run.trained("blk.0.attn_norm.weight").weights, 63,
           1);  // the last bit of the last weight
  expect_contains(refusal(run, run.checkpoint), "tensor 'blk.0.attn_norm.weight'");
}

TEST(Export, RefusesAWeightThatIsNotFinite) {
  TinyRun run = make_usual_run();
  TrainedTensor& norm = run.trained("blk.0.attn_norm.weight");
  norm.weights = norm.weights.clone();
  norm.weights[9] = INFINITY;
  norm.materialized_hash = content_hash(norm.weights);
  expect_contains(refusal(run, run.checkpoint), "row 0, column 9 is inf");
}

TEST(Export, RefusesAnotherTypeThanPlanned) {
  TinyRun run = make_usual_run();
  run.trained("token_embd.weight").type = GgmlType::kQ4_0;
  expect_contains(refusal(run, run.checkpoint), "was trained as Q4_0, the plan wants Q8_0");
}

TEST(Export, RefusesAnotherShape) {
  TinyRun run = make_usual_run();
  TrainedTensor& tensor = run.trained("blk.0.attn_norm.weight");
  tensor.weights = tensor.weights.slice(0, 0, 32).contiguous();
  expect_contains(refusal(run, run.checkpoint),
                  "has the shape [32] in the checkpoint, [64] in the source");
}

TEST(Export, RefusesATensorTheSourceLacks) {
  TinyRun run = make_usual_run();
  run.trained("token_embd.weight").name = "token_embt.weight";
  expect_contains(refusal(run, run.checkpoint),
                  "tensor 'token_embt.weight': the checkpoint has it");
}

TEST(Export, RefusesToQuantizeWhatWasNotTrained) {
  TinyRun run = make_usual_run();
  std::erase_if(run.checkpoint.tensors,
                [](const auto& tensor) { return tensor.name == "token_embd.weight"; });
  const std::string line = refusal(run, run.checkpoint);
  expect_contains(line, "tensor 'token_embd.weight': was not trained; from F32 to Q8_0");
  expect_contains(line, "row 0, column 0");
}

// Widening loses nothing, so it needs no training.
TEST(Export, WidensWhatWasNotTrained) {
  using enum GgmlType;
  const TinyRun run =
      make_tiny_run({{"a", {64, 2}, kQ4_0, kF32, false}, {"b", {64, 2}, kF16, kF32, false}});
  const std::string out = test_path("out.gguf");
  export_checkpoint(run.source(), run.plan, run.checkpoint, out, {});
  const GgufFile source = run.source(), file = GgufFile::open(out);
  for (const GgufTensor& tensor : file.tensors()) {
    EXPECT_EQ(tensor.type, kF32);
    EXPECT_EQ(decoded(tensor), decoded(source.tensor(tensor.name)));
  }
}

// Every format that nibble has, by both kinds of scales where it can have both.
TEST(Export, EveryFormat) {
  std::vector<TinyTensor> tensors;
  for (const Format& format : formats()) {
    for (const ScaleMode mode : {ScaleMode::kLearned, ScaleMode::kDynamic}) {
      if (format.has_byte_scales && mode != ScaleMode::kDynamic) continue;
      tensors.push_back({concat(format.name, ".", scale_mode_name(mode)),
                         {256, 3},
                         GgmlType::kF32,
                         format.type,
                         true,
                         mode});
    }
  }
  const TinyRun run = make_tiny_run(tensors);
  const ExportStats stats =
      export_checkpoint(run.source(), run.plan, run.checkpoint, test_path("out.gguf"), {});
  EXPECT_EQ(stats.weights_checked, static_cast<int64_t>(256 * 3 * tensors.size()));
}

/// The tensor as training of its scales alone leaves it.
void store_codes(TrainedTensor& tensor) {
  const std::vector<std::byte> bytes = restore_quantizer(tensor).blocks();
  const bool trains = tensor.scale_ratios.defined();
  const int64_t rows = tensor.weights.size(0);
  tensor.blocks = torch::empty({rows, static_cast<int64_t>(bytes.size()) / rows}, torch::kUInt8);
  std::copy(bytes.begin(), bytes.end(),
            reinterpret_cast<std::byte*>(tensor.blocks.mutable_data_ptr<uint8_t>()));
  tensor.weights = tensor.initial_scales = torch::Tensor();
  if (trains) tensor.scale_ratios = torch::full_like(tensor.scale_ratios, 1.125f);
  tensor.materialized_hash = content_hash(materialized(tensor));
}

std::vector<int8_t> codes_of(GgmlType type, const std::byte* blocks, int64_t num_weights) {
  const Format& format = require_format(type);
  std::vector<int8_t> codes(num_weights);
  format.codes_of(blocks, codes.data(), num_weights / format.block_size);
  return codes;
}

TEST(Export, StoredCodesOfEveryFormat) {
  std::vector<TinyTensor> tensors;
  for (const Format& format : formats()) {
    const ScaleMode mode = format.has_byte_scales ? ScaleMode::kDynamic : ScaleMode::kLearned;
    if (format.type != GgmlType::kF32)
      tensors.push_back(
          {std::string(format.name), {256, 3}, GgmlType::kF32, format.type, true, mode});
  }
  TinyRun run = make_tiny_run(tensors);
  for (TrainedTensor& tensor : run.checkpoint.tensors) store_codes(tensor);
  const std::string saved = test_path("last.safetensors"), out = test_path("out.gguf");
  save_checkpoint(saved, run.checkpoint);
  EXPECT_TRUE(load_checkpoint(saved).has_stored_codes());
  export_checkpoint(run.source(), run.plan, saved, out, {});
  const GgufFile file = GgufFile::open(out);
  for (const TrainedTensor& tensor : run.checkpoint.tensors) {
    const GgufTensor& written = file.tensor(tensor.name);
    EXPECT_EQ(content_hash(decoded(written)), tensor.materialized_hash) << tensor.name;
    const auto* stored =
        reinterpret_cast<const std::byte*>(tensor.blocks.const_data_ptr<uint8_t>());
    const bool same_bytes = std::equal(written.data.begin(), written.data.end(), stored);
    EXPECT_EQ(same_bytes, !tensor.scale_ratios.defined()) << tensor.name;
    if (!require_format(tensor.type).codes_of) continue;
    EXPECT_EQ(codes_of(tensor.type, written.data.data(), written.num_weights()),
              codes_of(tensor.type, stored, written.num_weights()))
        << tensor.name;
  }
}

TEST(Export, StoredCodesHaveNoMasters) {
  TinyRun run = make_usual_run();
  store_codes(run.trained("blk.0.attn_q.weight"));
  try {
    masters_of(run.checkpoint);
    FAIL();
  } catch (const Error& error) {
    expect_contains(error.what(), "tensor 'blk.0.attn_q.weight': was trained as stored codes");
  }
}

TEST(Export, RefusesChangedStoredBlocks) {
  const std::string name = "blk.0.attn_q.weight";
  TinyRun run = make_usual_run();
  store_codes(run.trained(name));
  TrainedTensor& tensor = run.trained(name);
  const torch::Tensor blocks = tensor.blocks, ratios = tensor.scale_ratios;
  tensor.blocks = blocks.clone();
  tensor.blocks.mutable_data_ptr<uint8_t>()[5] ^= 1;  // a code of the first block
  expect_contains(refusal(run, run.checkpoint), "masters, scales or hash were changed");
  tensor.blocks = blocks;
  flip_bit(tensor.scale_ratios, 2, 1u << 22);
  expect_contains(refusal(run, run.checkpoint), "masters, scales or hash were changed");
  tensor.scale_ratios = torch::Tensor();
  expect_contains(refusal(run, run.checkpoint), "without scale ratios");
  tensor.scale_ratios = ratios;
  export_checkpoint(run.source(), run.plan, run.checkpoint, test_path("out.gguf"), {});
}

/// Bits of blocks that may change no weight: the sign of a 4-bit float 0 and the highest bit of
/// NVFP4's scales, and where TQ1_0 has 8 bits for the 3^5 numbers of five codes or the 3^4 of four,
/// the lowest of a byte or the lowest two.
int64_t idle_bits(const Format& format, const std::vector<float>& weights) {
  const auto num_blocks = static_cast<int64_t>(weights.size()) / format.block_size;
  if (format.type == GgmlType::kTQ1_0) return num_blocks * (48 + 2 * 4);
  if (!format.has_byte_scales) return 0;
  const int64_t idle = format.type == GgmlType::kNVFP4 ? num_blocks * format.num_scales : 0;
  return idle + std::count(weights.begin(), weights.end(), 0.0f);
}

// Any flipped bit of a block either leaves every weight as it was or is named.
TEST(Parity, NoticesEveryBitOfABlock) {
  for (const Format& format : formats()) {
    const std::vector<float> weights = noise(format.block_size * 2, 3);
    std::vector<std::byte> blocks =
        encode_tensor(format.type, weights, format.block_size, {}, EncodeMethod::kRtn);
    std::vector<float> wanted(weights.size());
    decode_tensor(format.type, blocks, wanted);
    EXPECT_EQ(check_parity(format.type, blocks, wanted, format.block_size), content_hash(wanted));
    int noticed = 0;
    const auto num_bits = static_cast<int>(8 * blocks.size());
    for (int bit = 0; bit < num_bits; ++bit) {
      std::vector<std::byte> changed = blocks;
      changed[bit / 8] ^= std::byte{1} << (bit % 8);
      std::vector<float> found(weights.size());
      decode_tensor(format.type, changed, found);
      if (!first_difference(wanted, found, format.block_size)) continue;
      ++noticed;
      EXPECT_THROW(check_parity(format.type, changed, wanted, format.block_size), Error);
    }
    // Every other bit of a block means something, so all of them are noticed.
    EXPECT_GE(noticed, num_bits - idle_bits(format, wanted)) << format.name;
  }
}

TEST(Parity, NamesTheWeight) {
  const std::vector<float> wanted = {1, 2, 3, 0.0f, 5, 6};
  std::vector<float> found = wanted;
  EXPECT_FALSE(first_difference(wanted, found, 3));
  found[3] = -0.0f;  // equal as numbers, not as bits
  const auto difference = first_difference(wanted, found, 3);
  ASSERT_TRUE(difference);
  EXPECT_EQ(difference->text(), "row 1, column 0: wanted 0 (0x00000000), found -0 (0x80000000)");
}

}  // namespace
}  // namespace nibble
