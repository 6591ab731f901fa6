#include "training/stored_start.h"

#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "io/gguf.h"
#include "model/made_weight.h"
#include "quant/fake/on_grid.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

std::vector<std::byte> ptq_blocks(const Weight& weight, GgmlType type, EncodeMethod method) {
  const torch::Tensor value = values_of(weight.value.detach()).contiguous();
  const std::span<const float> values(value.const_data_ptr<float>(), value.numel());
  return with_frame("tensor '" + weight.name + "'",
                    [&] { return encode_tensor(type, values, value.size(-1), {}, method); });
}

}  // namespace

torch::Tensor block_tensor(std::span<const std::byte> bytes, std::vector<int64_t> sizes) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < sizes.size(); ++i) rows *= sizes[i];
  sizes.back() = static_cast<int64_t>(bytes.size()) / rows;
  torch::Tensor blocks = torch::empty(sizes, torch::kUInt8);
  std::memcpy(blocks.mutable_data_ptr<uint8_t>(), bytes.data(), bytes.size());
  return blocks;
}

FakeQuantizer stored_quantizer(const Weight& weight, GgmlType type, bool learns,
                               const StartingPoints& start, EncodeMethod method) {
  const Format& format = require_decoder(type);
  const auto stored = [&](std::span<const std::byte> bytes) -> FakeQuantizer {
    return {weight.name, format, block_tensor(bytes, weight.value.sizes().vec()), learns};
  };
  const auto found = start.find(weight.name);
  if (found == start.end()) return stored(ptq_blocks(weight, type, method));
  const StartingPoint& point = found->second;
  if (point.blocks.defined()) return {weight.name, format, point.blocks, learns};
  return stored(encoded(format, point.weights, point.scales));
}

std::unique_ptr<Model> load_stored(const std::string& path, StartingPoints& start) {
  const GgufFile file = GgufFile::open(path);
  std::unique_ptr<Model> model = load_model(file, torch::kCPU, {.on_use = true});
  for (const Weight* weight : model->weights()) {
    const GgufTensor& tensor = file.tensor(weight->name);
    if (tensor.type == GgmlType::kF32) continue;
    start[weight->name].blocks = block_tensor(tensor.data, weight->value.sizes().vec());
  }
  return model;
}

}  // namespace nibble
