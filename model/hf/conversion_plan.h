// Which tensors of a Hugging Face checkpoint become which of a GGUF file, and what is done to them:
// the plan that convert_hf() writes by.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/ggml_type.h"
#include "model/hf/adapter.h"
#include "model/hf/checkpoint.h"
#include "model/hf/config.h"
#include "model/hf/packed_weights.h"
#include "model/hf/quantization.h"
#include "model/hf/wanted_tensors.h"

namespace nibble {

/// A checkpoint, how what it has is packed, and what changes it.
struct HfSource {
  std::string folder;
  HfCheckpoint checkpoint;
  std::optional<HfQuantization> quantization;
  std::optional<HfAdapter> adapter;
  bool has_tower = false;  // of what sees, in a file of its own

  /// The matrix that `name` is a part of, "" where it is a tensor as it is.
  std::string packed_matrix(const std::string& name) const {
    return quantization ? packed_matrix_of(*quantization, name) : "";
  }
  /// Whether it is the bias of zeros that GPTQ's programs gave each packed matrix, which the model
  /// does not have.
  bool is_made_up_bias(const HfCheckpoint::Tensor& tensor) const;
  /// Layers that predict further tokens. Throws where there are none, or more than one: llama.cpp
  /// loads no file of them.
  int64_t count_mtp_layers(const HfConfig& config) const;
  /// The type of the first matrix by name that is not packed, which stands for all.
  GgmlType stored_type() const;
};

/// One matrix, or vector, in the checkpoint.
struct HfPart {
  const HfCheckpoint::Tensor* tensor = nullptr;  // of a packed matrix, its codes
  int64_t first_row = 0;                         // of the tensor
  std::optional<PackedMatrix> packed{};
  std::optional<std::string> updated{};  // its name in the adapter, where that updates it
};

/// One tensor of the file, and where it comes from.
struct HfJob {
  WantedTensors::Target wanted;
  GgmlType type = GgmlType::kF32;
  std::vector<HfPart> parts;  // one, or each expert's
  size_t position = 0;        // of its last part among the checkpoint's tensors

  int64_t num_rows() const { return std::ssize(parts) * wanted.rows; }
  int64_t num_weights() const { return num_rows() * wanted.row_length; }
};

/// "<file>: tensor '<name>'"
std::string frame_of(const HfCheckpoint::Tensor& tensor);

/// matrix_type: of all matrices; nothing: `stored_type`, and the block type that has the codes of
/// those that are packed. In the order of the file. Throws, naming file and tensor, where one is
/// missing, unknown, or another than config.json says.
std::vector<HfJob> plan_hf_jobs(const HfSource& source, const HfConfig& config,
                                std::optional<GgmlType> matrix_type, GgmlType stored_type);

}  // namespace nibble
