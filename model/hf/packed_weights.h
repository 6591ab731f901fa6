// A matrix that a quantized checkpoint holds as 4-bit codes, w = (code - zero) * scale in groups of
// a row's columns, or as MXFP4's floats. Its codes go into GGUF's blocks as they are: where every
// zero is 8 that is Q4_0, else Q4_1, whose float16 minimum is -zero * scale rounded.
//
// Layouts, of int32 words with eight codes, the first in the lowest bits (sources: AutoGPTQ
// nn_modules/qlinear/qlinear_cuda.py, AutoAWQ modules/linear/gemm.py, compressed-tensors
// compressors/pack_quantized and mxfp4):
//   gptq     qweight [columns / 8, rows], qzeros [groups, rows / 8], scales [groups, rows],
//            g_idx [columns]: each column's group. Format "gptq" stores zeros less 1, "gptq_v2"
//            does not.
//   awq      qweight [columns, rows / 8], qzeros [groups, rows / 8], scales [groups, rows]; of
//            eight rows in a word the order is 0 2 4 6 1 3 5 7.
//   compressed-tensors  weight_packed [rows, columns / 8], weight_scale [rows, groups],
//            weight_zero_point [rows / 8, groups], weight_shape [2], weight_g_idx [columns].
//   mxfp4    weight_packed U8 [rows, columns / 2], weight_scale U8 [rows, columns / 32].
//   gpt-oss  a stack of experts' matrices: _blocks U8 [experts, rows, columns / 32, 16], _scales U8
//            [experts, rows, columns / 32], bytes as mxfp4's (source: transformers
//            integrations/mxfp4.py).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/ggml_type.h"
#include "model/hf/checkpoint.h"
#include "model/hf/quantization.h"

namespace nibble {

/// The tensor of an unquantized checkpoint of which `name` is a part, "" where it is none of a
/// packed matrix: "x.qweight" and "x.scales" are of "x.weight".
std::string packed_matrix_of(const HfQuantization& quantization, const std::string& name);

/// The part that has the codes: "x.weight" has them in "x.qweight".
std::string packed_codes_of(const HfQuantization& quantization, const std::string& matrix);

/// Four-bit codes of a matrix, eight to a word along one of its sides.
struct PackedCodes {
  const std::byte* words = nullptr;
  int64_t row_stride = 0, column_stride = 0;  // in words, of one word to the next
  bool packs_rows = false;                    // a word is of eight rows; else of eight columns
  bool is_awq = false;

  int at(int64_t row, int64_t column) const;
};

class PackedMatrix {
 public:
  /// Nothing where the checkpoint does not have the matrix in packed form; of a stack of
  /// `matrices`, number `index`. Throws, naming the part, where one is missing or is not what the
  /// sizes ask for.
  static std::optional<PackedMatrix> find(const HfCheckpoint& checkpoint,
                                          const HfQuantization& quantization,
                                          const std::string& name, int64_t rows, int64_t columns,
                                          int64_t matrices = 1, int64_t index = 0);

  /// Q4_0, Q4_1 or MXFP4. Throws where a group is not of whole blocks, saying what to do.
  GgmlType block_type() const;
  /// type: block_type(), or Q4_1 where that is Q4_0.
  void write_blocks(GgmlType type, int64_t row, std::span<std::byte> blocks) const;
  /// What the checkpoint's weights are, in float32. Throws for a scale that is not finite.
  void decode(int64_t row, std::span<float> weights) const;
  float scale(int64_t row, int64_t column) const;
  /// Gives back the memory of what was read.
  void release() const;

 private:
  bool is_mxfp4() const {
    return packing_ == HfPacking::kMxfp4 || packing_ == HfPacking::kMxfp4Stacks;
  }
  void find_gptq_or_awq(const HfCheckpoint& checkpoint, const HfQuantization& quantization,
                        const std::string& module);
  void find_compressed(const HfCheckpoint& checkpoint, const std::string& module);
  void find_mxfp4(const HfCheckpoint& checkpoint, const std::string& module);
  void find_mxfp4_stack(const HfCheckpoint& checkpoint, int64_t matrices);
  void read_groups(const HfCheckpoint::Tensor* tensor, const HfQuantization& quantization);
  void look_at_zeros();
  int64_t group(int64_t column) const;
  int zero(int64_t row, int64_t group) const;
  std::vector<uint8_t> codes_of_row(int64_t row) const;

  std::string name_;
  HfPacking packing_ = HfPacking::kGptq;
  int64_t rows_ = 0, columns_ = 0, group_size_ = 0, num_groups_ = 0;
  int64_t first_row_ = 0;        // of a stack's matrix
  PackedCodes weights_, zeros_;  // of zeros a group is a column; no words: all are 8
  int zero_offset_ = 0;
  bool is_symmetric_ = true;
  HfCheckpoint::Tensor codes_{}, scales_{};
  int64_t scale_row_stride_ = 0, scale_group_stride_ = 0;
  std::vector<int32_t> groups_;  // of each column; empty: group_size_ columns in a row are one
};

}  // namespace nibble
