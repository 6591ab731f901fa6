// Small GGUF files with the tensor names of real models, for the rules that go by names and shapes.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "io/gguf.h"

namespace nibble {

/// Writes the file; every tensor is float32 and holds weight(tensor index, weight index).
inline void write_model(const std::string& path, const GgufMetadata& metadata,
                        const std::vector<std::pair<std::string, std::vector<int64_t>>>& tensors,
                        const std::function<float(size_t, int64_t)>& weight) {
  std::vector<GgufWriter::Tensor> table;
  for (const auto& [name, shape] : tensors) table.push_back({name, shape, GgmlType::kF32});
  GgufWriter writer(path, metadata, table);
  for (size_t i = 0; i < tensors.size(); ++i) {
    int64_t count = 1;
    for (const int64_t size : tensors[i].second) count *= size;
    std::vector<float> weights(static_cast<size_t>(count));
    for (int64_t j = 0; j < count; ++j) weights[static_cast<size_t>(j)] = weight(i, j);
    writer.write(std::as_bytes(std::span(weights)));
  }
  writer.finish();
}

inline GgufMetadata metadata_of(const std::string& architecture, uint32_t layers,
                                uint32_t experts = 0) {
  GgufMetadata metadata;
  metadata.set("general.architecture", architecture);
  metadata.set(architecture + ".block_count", layers);
  if (experts) metadata.set(architecture + ".expert_count", experts);
  return metadata;
}

}  // namespace nibble
