#include "training/model_file.h"

#include <map>
#include <span>

#include "base/error.h"
#include "quant/mix/quantize_file.h"

namespace nibble {
namespace {

GgufMetadata metadata_of(const GgufFile& source, const Plan& plan) {
  GgufMetadata metadata = quantized_metadata(source.metadata(), plan, EncodeMethod::kSearch);
  metadata.set("nibble.method", std::string("training"));  // and not the search of its metadata
  return metadata;
}

}  // namespace

std::vector<std::byte> bytes_of(const TrainedTensor& tensor) {
  if (tensor.type != GgmlType::kF32) return restore_quantizer(tensor).blocks();
  const torch::Tensor values = tensor.weights.cpu().contiguous();
  const auto bytes =
      std::as_bytes(std::span(values.const_data_ptr<float>(), static_cast<size_t>(values.numel())));
  return {bytes.begin(), bytes.end()};
}

void write_model_file(const std::string& path, const GgufFile& source, const Plan& plan,
                      const std::vector<TrainedTensor>& tensors) {
  std::map<std::string, const TrainedTensor*> trained;
  for (const TrainedTensor& tensor : tensors) trained[tensor.name] = &tensor;
  const auto find = [&](const GgufTensor& tensor) -> const TrainedTensor* {
    const auto found = trained.find(tensor.name);
    return found == trained.end() ? nullptr : found->second;
  };
  std::vector<GgufWriter::Tensor> table;
  for (const GgufTensor& tensor : source.tensors()) {
    const TrainedTensor* own = find(tensor);
    table.push_back({tensor.name, tensor.shape, own ? own->type : tensor.type});
  }
  GgufWriter writer(path, metadata_of(source, plan), table);
  for (const GgufTensor& tensor : source.tensors()) {
    const TrainedTensor* own = find(tensor);
    with_frame(concat("tensor '", tensor.name, "'"), [&] {
      if (own)
        writer.write(bytes_of(*own));
      else
        writer.write(tensor.data);
    });
  }
  writer.finish();
}

}  // namespace nibble
