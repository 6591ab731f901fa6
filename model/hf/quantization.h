// quantization_config: how the matrices of a Hugging Face checkpoint that is quantized already are
// packed. Read are the 4-bit codes of GPTQ, AWQ (its "gemm" version) and compressed-tensors
// (pack-quantized, mxfp4-pack-quantized), and gpt-oss's MXFP4; everything else is refused by its
// name.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace nibble {

enum class HfPacking { kGptq, kAwq, kCompressedTensors, kMxfp4, kMxfp4Stacks };

struct HfQuantization {
  std::string method;  // as it calls itself: "gptq"
  HfPacking packing = HfPacking::kGptq;
  int64_t group_size = -1;  // columns that share a scale; -1: a row's all
  bool zeros_minus_one = false;
  bool orders_columns = false;  // by activations: says which group each column is of
};

/// Of config.json, or of quantize_config.json, where GPTQ's first programs put it; nothing where
/// the checkpoint is not quantized.
std::optional<HfQuantization> read_hf_quantization(const std::string& folder,
                                                   const nlohmann::json& config);

}  // namespace nibble
