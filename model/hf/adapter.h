// A LoRA adapter as PEFT writes it: adapter_config.json and adapter_model.safetensors. A weight
// with lora_A [rank, columns] and lora_B [rows, rank] becomes W + scale * B A, scale alpha / rank,
// or alpha / sqrt(rank) with use_rslora (sources: peft tuners/lora/layer.py, config.py); a tensor
// of modules_to_save takes the place of the model's. All else is refused by name.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/safetensors.h"
#include "model/hf/checkpoint.h"

namespace nibble {

/// What is added to a matrix.
struct LowRankUpdate {
  int64_t rank = 0;
  float scale = 0;
  std::vector<float> a, b;  // [rank, columns], [rows, rank]

  /// In float32, products summed in the order of the rank.
  void add_to(int64_t row, std::span<float> weights) const;
};

class HfAdapter {
 public:
  static HfAdapter open(const std::string& folder);

  const std::string& path() const { return file_->path(); }
  /// Names of the model's tensors that it changes or replaces.
  std::vector<std::string> tensors() const;
  /// What takes the place of the model's tensor, or nullptr.
  const HfCheckpoint::Tensor* replacement(const std::string& name) const;
  bool updates(const std::string& name) const { return pairs_.count(name) > 0; }
  /// Of a matrix that it updates. Throws where the adapter's tensors have other sizes.
  LowRankUpdate update(const std::string& name, int64_t rows, int64_t columns) const;

 private:
  struct Pair {
    const SafetensorsEntry *a = nullptr, *b = nullptr;
  };
  explicit HfAdapter(SafetensorsFile file)
      : file_(std::make_unique<SafetensorsFile>(std::move(file))) {}
  void read_config(const nlohmann::json& config);
  void add(const SafetensorsEntry& entry);
  double alpha_of(const std::string& module) const;

  std::unique_ptr<SafetensorsFile> file_;  // stays where it is: replacements_ name it
  double alpha_ = 0;
  bool root_of_rank_ = false;
  std::vector<std::pair<std::string, double>> alpha_pattern_;
  std::map<std::string, Pair> pairs_;  // by the model's name of the weight
  std::map<std::string, HfCheckpoint::Tensor> replacements_;
};

}  // namespace nibble
