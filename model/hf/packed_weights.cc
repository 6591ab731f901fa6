#include "model/hf/packed_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>

#include "base/error.h"
#include "base/float16.h"
#include "quant/format/mxfp4.h"
#include "quant/format/q4_0.h"
#include "quant/format/q4_1.h"
#include "quant/format/registry.h"

namespace nibble {
namespace {

using Tensor = HfCheckpoint::Tensor;

constexpr int64_t kBlock = 32;
constexpr const char* kDecodeInstead = "; --outtype f16 writes the weights that they decode to";

/// Suffixes of a matrix's parts, in the place of "weight" or, of a stack, behind its name; the
/// first has the codes.
std::span<const std::string_view> parts_of(HfPacking packing) {
  static constexpr std::string_view kInterleaved[] = {"qweight", "qzeros", "scales", "g_idx"};
  static constexpr std::string_view kCompressed[] = {
      "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"};
  static constexpr std::string_view kMxfp4[] = {"weight_packed", "weight_scale"};
  static constexpr std::string_view kMxfp4Stacks[] = {"_blocks", "_scales"};
  switch (packing) {
    case HfPacking::kGptq:
      return kInterleaved;
    case HfPacking::kAwq:
      return std::span(kInterleaved).first(3);
    case HfPacking::kCompressedTensors:
      return kCompressed;
    case HfPacking::kMxfp4:
      return kMxfp4;
    case HfPacking::kMxfp4Stacks:
      return kMxfp4Stacks;
  }
  return {};
}

/// "x." of "x.weight"; "" of another name.
std::string module_of(const std::string& matrix) {
  constexpr std::string_view kWeight = ".weight";
  return matrix.ends_with(kWeight) ? matrix.substr(0, matrix.size() - kWeight.size() + 1) : "";
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text += concat(text.empty() ? "" : ", ", size);
  return concat('[', text, ']');
}

/// The part, of the wanted shape and one of the wanted dtypes.
const Tensor& require(const HfCheckpoint& checkpoint, const std::string& name,
                      const std::vector<int64_t>& shape,
                      std::initializer_list<std::string_view> dtypes) {
  const Tensor* tensor = checkpoint.find(name);
  check(tensor, "tensor '", name, "' is missing");
  const SafetensorsEntry& entry = *tensor->entry;
  std::string wanted;
  for (const std::string_view dtype : dtypes) wanted += concat(wanted.empty() ? "" : " or ", dtype);
  const bool fits = std::find(dtypes.begin(), dtypes.end(), entry.dtype) != dtypes.end();
  check(fits && entry.shape == shape, tensor->file->path(), ": tensor '", name, "': is ",
        entry.dtype, ' ', shape_text(entry.shape), ", config.json wants ", wanted, ' ',
        shape_text(shape));
  return *tensor;
}

template <class T>
T load(const std::byte* bytes, int64_t index) {
  T value;
  std::memcpy(&value, bytes + index * static_cast<int64_t>(sizeof value), sizeof value);
  return value;
}

float load_float(const SafetensorsEntry& entry, int64_t index) {
  const std::byte* bytes = entry.data.data();
  if (entry.dtype == "F32") return load<float>(bytes, index);
  const auto half = load<uint16_t>(bytes, index);
  return entry.dtype == "F16" ? float16_to_float(half) : bfloat16_to_float(half);
}

uint16_t stored_scale(float scale) {
  const uint16_t half = float_to_float16(scale);
  check((half & 0x7fff) < 0x7c00, "a scale of ", scale, " is beyond float16", kDecodeInstead);
  return half;
}

/// Codes from 0 to 15 as nibbles: j in the low, j + 16 in the high half of byte j.
void put_nibbles(const uint8_t* codes, uint8_t* nibbles) {
  for (int j = 0; j < kBlock / 2; ++j)
    nibbles[j] = static_cast<uint8_t>(codes[j] | codes[j + kBlock / 2] << 4);
}

template <class Block>
void store(const Block& block, std::span<std::byte> blocks, int64_t index) {
  std::memcpy(blocks.data() + index * static_cast<int64_t>(sizeof block), &block, sizeof block);
}

}  // namespace

std::string packed_matrix_of(const HfQuantization& quantization, const std::string& name) {
  const bool is_stack = quantization.packing == HfPacking::kMxfp4Stacks;
  for (const std::string_view part : parts_of(quantization.packing))
    if (is_stack && name.ends_with(part))
      return name.substr(0, name.size() - part.size());
    else if (name.ends_with(concat('.', part)))
      return name.substr(0, name.size() - part.size()) + "weight";
  return "";
}

std::string packed_codes_of(const HfQuantization& quantization, const std::string& matrix) {
  const bool is_stack = quantization.packing == HfPacking::kMxfp4Stacks;
  return concat(is_stack ? matrix : module_of(matrix), parts_of(quantization.packing).front());
}

inline int PackedCodes::at(int64_t row, int64_t column) const {
  static constexpr uint8_t kAwqPlaces[] = {0, 4, 1, 5, 2, 6, 3, 7};
  const int64_t word = (packs_rows ? row >> 3 : row) * row_stride +
                       (packs_rows ? column : column >> 3) * column_stride;
  const auto within = static_cast<size_t>((packs_rows ? row : column) & 7);
  const size_t place = is_awq ? kAwqPlaces[within] : within;
  return static_cast<int>(load<uint32_t>(words, word) >> 4 * place & 15);
}

std::optional<PackedMatrix> PackedMatrix::find(const HfCheckpoint& checkpoint,
                                               const HfQuantization& quantization,
                                               const std::string& name, int64_t rows,
                                               int64_t columns, int64_t matrices, int64_t index) {
  const std::string module = module_of(name), codes = packed_codes_of(quantization, name);
  if (!checkpoint.find(codes)) return std::nullopt;
  check(!checkpoint.find(name), "tensor '", name, "' is there both packed and as it is");
  PackedMatrix matrix;
  matrix.name_ = name;
  matrix.packing_ = quantization.packing;
  matrix.rows_ = rows;
  matrix.columns_ = columns;
  matrix.first_row_ = index * rows;
  matrix.group_size_ = quantization.group_size == -1 ? columns : quantization.group_size;
  matrix.num_groups_ = (columns + matrix.group_size_ - 1) / matrix.group_size_;
  switch (quantization.packing) {
    case HfPacking::kGptq:
    case HfPacking::kAwq:
      matrix.find_gptq_or_awq(checkpoint, quantization, module);
      matrix.read_groups(checkpoint.find(module + "g_idx"), quantization);
      break;
    case HfPacking::kCompressedTensors:
      matrix.find_compressed(checkpoint, module);
      matrix.read_groups(checkpoint.find(module + "weight_g_idx"), quantization);
      break;
    case HfPacking::kMxfp4:
      matrix.find_mxfp4(checkpoint, module);
      break;
    case HfPacking::kMxfp4Stacks:
      matrix.find_mxfp4_stack(checkpoint, matrices);
      break;
  }
  matrix.look_at_zeros();
  return matrix;
}

void PackedMatrix::find_gptq_or_awq(const HfCheckpoint& checkpoint,
                                    const HfQuantization& quantization, const std::string& module) {
  const bool is_awq = packing_ == HfPacking::kAwq;
  check(rows_ % 8 == 0 && (is_awq || columns_ % 8 == 0), "tensor '", name_, "': ", rows_, " x ",
        columns_, " codes do not fill words of eight");
  const std::vector<int64_t> shape = is_awq ? std::vector<int64_t>{columns_, rows_ / 8}
                                            : std::vector<int64_t>{columns_ / 8, rows_};
  codes_ = require(checkpoint, module + "qweight", shape, {"I32"});
  weights_ = {codes_.entry->data.data(), 1, shape[1], is_awq, is_awq};
  const Tensor& zeros = require(checkpoint, module + "qzeros", {num_groups_, rows_ / 8}, {"I32"});
  zeros_ = {zeros.entry->data.data(), 1, rows_ / 8, true, is_awq};
  zero_offset_ = quantization.zeros_minus_one ? 1 : 0;
  scales_ = require(checkpoint, module + "scales", {num_groups_, rows_}, {"F16", "BF16", "F32"});
  scale_row_stride_ = 1;
  scale_group_stride_ = rows_;
}

void PackedMatrix::find_compressed(const HfCheckpoint& checkpoint, const std::string& module) {
  const int64_t words = (columns_ + 7) / 8;
  codes_ = require(checkpoint, module + "weight_packed", {rows_, words}, {"I32"});
  weights_ = {codes_.entry->data.data(), words, 1, false, false};
  scales_ =
      require(checkpoint, module + "weight_scale", {rows_, num_groups_}, {"F16", "BF16", "F32"});
  scale_row_stride_ = num_groups_;
  scale_group_stride_ = 1;
  const SafetensorsEntry& shape =
      *require(checkpoint, module + "weight_shape", {2}, {"I64", "I32"}).entry;
  for (int i = 0; i < 2; ++i) {
    const int64_t size = shape.dtype == "I64" ? load<int64_t>(shape.data.data(), i)
                                              : load<int32_t>(shape.data.data(), i);
    const int64_t wanted = i == 0 ? rows_ : columns_;
    check(size == wanted, "tensor '", module, "weight_shape': number ", i, " is ", size,
          ", config.json wants ", wanted);
  }
  if (!checkpoint.find(module + "weight_zero_point")) return;
  const Tensor& zeros =
      require(checkpoint, module + "weight_zero_point", {(rows_ + 7) / 8, num_groups_}, {"I32"});
  zeros_ = {zeros.entry->data.data(), num_groups_, 1, true, false};
}

void PackedMatrix::find_mxfp4(const HfCheckpoint& checkpoint, const std::string& module) {
  check(columns_ % kBlock == 0, "tensor '", name_, "': rows of ", columns_,
        " weights, mxfp4 has groups of ", kBlock);
  // Bytes of two codes lie as words of eight do.
  codes_ = require(checkpoint, module + "weight_packed", {rows_, columns_ / 2}, {"U8"});
  weights_ = {codes_.entry->data.data(), columns_ / 8, 1, false, false};
  scales_ = require(checkpoint, module + "weight_scale", {rows_, num_groups_}, {"U8", "F8_E8M0"});
  scale_row_stride_ = num_groups_;
  scale_group_stride_ = 1;
}

void PackedMatrix::find_mxfp4_stack(const HfCheckpoint& checkpoint, int64_t matrices) {
  check(columns_ % kBlock == 0, "tensor '", name_, "': rows of ", columns_,
        " weights, mxfp4 has groups of ", kBlock);
  codes_ =
      require(checkpoint, name_ + "_blocks", {matrices, rows_, num_groups_, kBlock / 2}, {"U8"});
  weights_ = {codes_.entry->data.data(), columns_ / 8, 1, false, false};
  scales_ = require(checkpoint, name_ + "_scales", {matrices, rows_, num_groups_}, {"U8"});
  scale_row_stride_ = num_groups_;
  scale_group_stride_ = 1;
}

void PackedMatrix::read_groups(const Tensor* tensor, const HfQuantization& quantization) {
  if (!tensor) {
    check(!quantization.orders_columns, "tensor '", name_,
          "': its columns are ordered by activations, and no g_idx says how");
    return;
  }
  const SafetensorsEntry& entry = *tensor->entry;
  with_frame(concat(tensor->file->path(), ": tensor '", entry.name, "'"), [&] {
    check(entry.dtype == "I32" && entry.shape == std::vector<int64_t>{columns_}, "is ", entry.dtype,
          ' ', shape_text(entry.shape), ", config.json wants I32 [", columns_, ']');
    groups_.resize(static_cast<size_t>(columns_));
    std::memcpy(groups_.data(), entry.data.data(), entry.data.size());
    for (const int32_t group : groups_)
      check(group >= 0 && group < num_groups_, "names group ", group, ", there are ", num_groups_);
  });
}

void PackedMatrix::look_at_zeros() {
  if (!zeros_.words) return;
  for (int64_t group = 0; group < num_groups_; ++group)
    for (int64_t row = 0; row < rows_; ++row) {
      const int zero = this->zero(row, group);
      check(zero < 16, "tensor '", name_, "': row ", row, ", group ", group,
            ": a stored zero of 15 is 16 to some programs and 0 to others");
      is_symmetric_ = is_symmetric_ && zero == 8;
    }
}

int64_t PackedMatrix::group(int64_t column) const {
  return groups_.empty() ? column / group_size_ : groups_[static_cast<size_t>(column)];
}

int PackedMatrix::zero(int64_t row, int64_t group) const {
  return zeros_.words ? zeros_.at(row, group) + zero_offset_ : 8;
}

float PackedMatrix::scale(int64_t row, int64_t column) const {
  const int64_t index =
      (first_row_ + row) * scale_row_stride_ + group(column) * scale_group_stride_;
  if (!is_mxfp4()) return load_float(*scales_.entry, index);
  const int exponent = load<uint8_t>(scales_.entry->data.data(), index);
  check(exponent < 255, "row ", row, ", column ", column, ": a scale that is no number");
  return std::ldexp(1.0f, exponent - 127);
}

GgmlType PackedMatrix::block_type() const {
  if (is_mxfp4()) return GgmlType::kMXFP4;
  check(columns_ % kBlock == 0, "rows of ", columns_, " codes are no blocks of ", kBlock,
        kDecodeInstead);
  for (int64_t column = 0; column < columns_; ++column)
    check(group(column) == group(column / kBlock * kBlock), "columns ", column / kBlock * kBlock,
          " and ", column, " have scales of their own (", groups_.empty() ? "group_size" : "g_idx",
          "), which no block of ", kBlock, " weights can say", kDecodeInstead);
  return is_symmetric_ ? GgmlType::kQ4_0 : GgmlType::kQ4_1;
}

std::vector<uint8_t> PackedMatrix::codes_of_row(int64_t row) const {
  std::vector<uint8_t> codes(static_cast<size_t>(columns_));
  for (int64_t column = 0; column < columns_; ++column)
    codes[static_cast<size_t>(column)] =
        static_cast<uint8_t>(weights_.at(first_row_ + row, column));
  return codes;
}

void PackedMatrix::write_blocks(GgmlType type, int64_t row, std::span<std::byte> blocks) const {
  const std::vector<uint8_t> row_codes = codes_of_row(row);
  for (int64_t column = 0; column < columns_; column += kBlock) {
    const uint8_t* codes = row_codes.data() + column;
    const float scale = this->scale(row, column);
    if (type == GgmlType::kMXFP4) {
      // A level of the block is twice the number, its scale half as large, its byte the same.
      MXFP4::Block block{static_cast<uint8_t>(std::ilogb(scale) + 127), {}};
      put_nibbles(codes, block.qs);
      store(block, blocks, column / kBlock);
    } else if (type == GgmlType::kQ4_0) {
      Q4_0::Block block{stored_scale(scale), {}};
      put_nibbles(codes, block.qs);
      store(block, blocks, column / kBlock);
    } else {
      const float minimum = -static_cast<float>(zero(row, group(column))) * scale;
      Q4_1::Block block{stored_scale(scale), stored_scale(minimum), {}};
      put_nibbles(codes, block.qs);
      store(block, blocks, column / kBlock);
    }
  }
}

void PackedMatrix::decode(int64_t row, std::span<float> weights) const {
  static constexpr float kFp4[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const std::vector<uint8_t> codes = codes_of_row(row);
  int64_t known = -1;  // the group that `levels` is of
  float levels[16];
  for (int64_t column = 0; column < columns_; ++column) {
    const int64_t of_column = group(column);
    if (of_column != known) {
      known = of_column;
      const float scale = this->scale(row, column);
      for (int code = 0; code < 16; ++code) {
        const float fp4 = code < 8 ? kFp4[code] : -kFp4[code - 8];
        levels[code] = (is_mxfp4() ? fp4 : static_cast<float>(code - zero(row, known))) * scale;
      }
    }
    weights[static_cast<size_t>(column)] = levels[codes[static_cast<size_t>(column)]];
  }
}

void PackedMatrix::release() const {
  for (const Tensor& tensor : {codes_, scales_}) tensor.file->release(*tensor.entry);
}

}  // namespace nibble
