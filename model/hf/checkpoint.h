// The weights of a Hugging Face folder: model.safetensors, or the files that
// model.safetensors.index.json names.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/safetensors.h"

namespace nibble {

class HfCheckpoint {
 public:
  struct Tensor {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
  };

  /// Opens every file. Throws when one is missing, when the index and the files do not name the
  /// same tensors, or when a tensor comes twice.
  static HfCheckpoint open(const std::string& folder);

  /// By file, then by name: the order of llama.cpp's converter.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  /// nullptr when there is none.
  const Tensor* find(std::string_view name) const;

 private:
  void add_file(const std::string& path);
  void check_index(const nlohmann::json& weight_map) const;

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<Tensor> tensors_;
  std::unordered_map<std::string_view, size_t> by_name_;  // names live in the files' entries
};

}  // namespace nibble
