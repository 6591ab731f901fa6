// A trained run in miniature for the export tests: a source file with every kind of tensor, and a
// checkpoint whose masters and scales have moved away from it, as training moves them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "export/export.h"
#include "export/parity.h"
#include "io/gguf.h"
#include "quant/format/rows.h"
#include "training/checkpoint.h"

namespace nibble {

/// A path in a folder of the running test's own.
inline std::string test_path(const std::string& name) {
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  std::string label = std::string(test->test_suite_name()) + "_" + test->name();
  std::replace(label.begin(), label.end(), '/', '_');
  const std::string folder = testing::TempDir() + "nibble_" + label;
  std::filesystem::create_directories(folder);
  return folder + "/" + name;
}

/// Deterministic values of about unit size, different for every seed.
inline std::vector<float> noise(int64_t count, int seed) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i)
    values[i] =
        static_cast<float>(std::sin(0.37 * i + seed) + 0.3 * std::cos(1.9 * i * (seed + 1)));
  return values;
}

/// One tensor of the miniature model.
struct TinyTensor {
  std::string name;
  std::vector<int64_t> shape;  // ggml order
  GgmlType source, target;
  bool trained;
  ScaleMode mode = ScaleMode::kLearned;
};

struct TinyRun {
  Plan plan;
  Checkpoint checkpoint;
  std::string source_path;

  GgufFile source() const { return GgufFile::open(source_path); }
  TrainedTensor& trained(const std::string& name) {
    for (TrainedTensor& tensor : checkpoint.tensors)
      if (tensor.name == name) return tensor;
    throw std::runtime_error("no tensor " + name);
  }
};

/// As the trainer leaves a tensor: scales from PTQ of the source's weights, then everything moved a
/// little.
inline TrainedTensor train_a_little(const TinyTensor& tensor, int seed) {
  const int64_t row_length = tensor.shape[0];
  int64_t rows = 1;
  for (size_t i = 1; i < tensor.shape.size(); ++i) rows *= tensor.shape[i];
  std::vector<float> values = noise(rows * row_length, seed);
  std::vector<int64_t> sizes(tensor.shape.rbegin(), tensor.shape.rend());
  TrainedTensor trained;
  trained.name = tensor.name;
  trained.type = tensor.target;
  trained.mode = tensor.mode;
  trained.weights = torch::from_blob(values.data(), sizes, torch::kFloat32).clone();
  if (tensor.target != GgmlType::kF32) {
    FakeQuantizer quantizer(tensor.name, require_format(tensor.target), tensor.mode,
                            trained.weights, {}, EncodeMethod::kRtn);
    if (quantizer.scale_ratios().defined()) {
      trained.scale_ratios = quantizer.scale_ratios() * 1.0625f;
      trained.initial_scales = quantizer.initial_scales();
    }
  }
  trained.weights.mul_(0.97f);
  trained.materialized_hash = content_hash(materialized(trained));
  return trained;
}

inline TinyRun make_tiny_run(const std::vector<TinyTensor>& tensors) {
  TinyRun run;
  run.source_path = test_path("source.gguf");
  GgufMetadata metadata;
  metadata.set("general.architecture", std::string("llama"));
  metadata.set("general.file_type", uint32_t{0});
  metadata.set("tokenizer.ggml.tokens",
               GgufArray{GgufValueType::kString, std::vector<std::string>{"a", "b\xc3\xa9", ""}});
  metadata.set("quantize.imatrix.file", std::string("of another file"));
  std::vector<GgufWriter::Tensor> table;
  for (const TinyTensor& tensor : tensors)
    table.push_back({tensor.name, tensor.shape, tensor.source});
  GgufWriter writer(run.source_path, metadata, table);
  run.plan.type_name = "Q4_0";
  run.plan.file_type = 2;
  int seed = 0;
  for (const TinyTensor& tensor : tensors) {
    int64_t count = 1;
    for (const int64_t size : tensor.shape) count *= size;
    writer.write(encode_tensor(tensor.source, noise(count, ++seed), tensor.shape[0], {},
                               EncodeMethod::kRtn));
    run.plan.entries.push_back({tensor.name, tensor.shape, tensor.source, tensor.target, "test"});
    if (tensor.trained) run.checkpoint.tensors.push_back(train_a_little(tensor, seed));
  }
  writer.finish();
  run.checkpoint.plan = run.plan;
  run.checkpoint.options_json = "{}";
  run.checkpoint.step = 7;
  return run;
}

/// Embedding, learned and dynamic matrices, a trained and an untrained norm, an untrained F16
/// matrix.
inline TinyRun make_usual_run() {
  using enum GgmlType;
  return make_tiny_run({{"token_embd.weight", {64, 40}, kF32, kQ8_0, true},
                        {"blk.0.attn_q.weight", {64, 64}, kF16, kQ4_0, true},
                        {"blk.0.attn_k.weight", {64, 32}, kF32, kQ4_1, true, ScaleMode::kDynamic},
                        {"blk.0.attn_norm.weight", {64}, kF32, kF32, true},
                        {"blk.0.ffn_norm.weight", {64}, kF32, kF32, false},
                        {"rope.factors", {3, 5}, kF16, kF16, false}});
}

}  // namespace nibble
