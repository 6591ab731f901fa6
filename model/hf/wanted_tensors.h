// The tensors that a Hugging Face model of a configuration has, by their names there and in GGUF.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/hf/config.h"

namespace nibble {

/// Every tensor that the configuration wants, by its name in the checkpoint.
class WantedTensors {
 public:
  struct Place {
    std::string name;  // GGUF's
    int64_t row_length, rows, heads;
    bool is_matrix;
  };

  explicit WantedTensors(const HfConfig& config);

  /// Names of those that must be there.
  const std::vector<std::string>& required() const { return required_; }
  const Place* find(const std::string& hf_name) const;
  /// All, by their names in the checkpoint.
  const std::unordered_map<std::string, Place>& places() const { return places_; }

 private:
  void add_layer(const HfConfig& config, const LlamaTensorRow& row, int64_t layer);
  void add(std::string hf_name, std::string name, LlamaSize row_length, LlamaSize rows,
           int64_t heads, bool required);

  LlamaSizes sizes_;
  std::vector<std::string> required_;
  std::unordered_map<std::string, Place> places_;
};

}  // namespace nibble
