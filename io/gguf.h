// GGUF v3 files (v2 is read too): metadata and tensors. Layout (source: ggml/include/gguf.h): magic
// "GGUF", u32 version, i64 tensor count, i64 key count; per key: string, u32 type, value; per
// tensor: string, u32 number of dimensions, i64 sizes (fastest first), u32 ggml type, u64 offset
// from the data section; the data section starts at the next multiple of general.alignment (32
// unless set), as does each tensor. Little-endian only. A file is memory-mapped and treated as
// hostile: every count, length and offset is checked against the file before anything is allocated
// or touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "io/ggml_type.h"

namespace nibble {

/// general.quantization_version: of ggml's quantized layouts (GGML_QNT_VERSION in
/// ggml/include/ggml.h).
inline constexpr uint32_t kQuantizationVersion = 2;

enum class GgufValueType : uint32_t {
  kUint8 = 0,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

/// An array's elements as one vector. Bools are bytes 0 or 1 with `type` kBool. Arrays of arrays
/// are refused.
struct GgufArray {
  GgufValueType type = GgufValueType::kUint8;
  std::variant<std::vector<uint8_t>, std::vector<int8_t>, std::vector<uint16_t>,
               std::vector<int16_t>, std::vector<uint32_t>, std::vector<int32_t>,
               std::vector<float>, std::vector<std::string>, std::vector<uint64_t>,
               std::vector<int64_t>, std::vector<double>>
      values;
  int64_t size() const;
  bool operator==(const GgufArray&) const = default;
};

using GgufValue = std::variant<uint8_t, int8_t, uint16_t, int16_t, uint32_t, int32_t, float, bool,
                               std::string, GgufArray, uint64_t, int64_t, double>;

/// What a value is in the file; the alternatives of GgufValue stand in the order of GgufValueType.
inline GgufValueType value_type(const GgufValue& value) {
  return static_cast<GgufValueType>(value.index());
}
/// "uint32", "string", ... for a number that the enumeration has.
std::string_view value_type_name(GgufValueType type);

/// Key-value pairs in file order.
class GgufMetadata {
 public:
  GgufMetadata() = default;
  /// Keys must differ.
  explicit GgufMetadata(std::vector<std::pair<std::string, GgufValue>> pairs)
      : pairs_(std::move(pairs)) {}

  const std::vector<std::pair<std::string, GgufValue>>& pairs() const { return pairs_; }
  const GgufValue* find(std::string_view key) const;
  bool contains(std::string_view key) const { return find(key) != nullptr; }
  /// Adds a key, or replaces its value in place.
  void set(std::string key, GgufValue value);
  void erase(std::string_view key);

  /// Typed look-ups. An integer of any width is taken where it fits. The get_ forms throw when the
  /// key is missing, all throw on another type, naming key, wanted and found type.
  int64_t get_int(std::string_view key) const;
  int64_t get_int_or(std::string_view key, int64_t otherwise) const;
  double get_float(std::string_view key) const;  // also from an integer
  double get_float_or(std::string_view key, double otherwise) const;
  bool get_bool_or(std::string_view key, bool otherwise) const;
  const std::string& get_string(std::string_view key) const;
  std::string get_string_or(std::string_view key, std::string otherwise) const;
  const std::vector<std::string>& get_strings(std::string_view key) const;
  const std::vector<float>& get_floats(std::string_view key) const;
  /// Integer array of any width, widened.
  std::vector<int64_t> get_ints(std::string_view key) const;

 private:
  std::vector<std::pair<std::string, GgufValue>> pairs_;
};

/// One tensor of an open file; `data` points into the map.
struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;  // ggml order: shape[0] is the row length
  GgmlType type = GgmlType::kF32;
  std::span<const std::byte> data;
  int64_t file_offset = 0;  // of data, in its file
  int part = 0;             // which file of a split model

  int64_t row_length() const { return shape.empty() ? 1 : shape[0]; }
  int64_t num_weights() const;
  int64_t num_rows() const { return num_weights() / row_length(); }
};

/// An open GGUF model: one file, or all parts of a split one (split.no/split.count; given the first
/// part, the others are found beside it by llama.cpp's name pattern -00001-of-0000N.gguf).
class GgufFile {
 public:
  /// Throws Error with path and byte offset.
  static GgufFile open(const std::string& path);
  /// What a file of these tensors would be like, without their data: for plans and sizes.
  static GgufFile layout(std::string path, GgufMetadata metadata, std::vector<GgufTensor> tensors);
  GgufFile(GgufFile&&) noexcept;
  GgufFile& operator=(GgufFile&&) noexcept;
  ~GgufFile();

  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }
  int64_t file_bytes() const;                                 // of all parts
  const GgufMetadata& metadata() const { return metadata_; }  // of the first part
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find_tensor(std::string_view name) const;
  /// Throws, naming the file, when there is none.
  const GgufTensor& tensor(std::string_view name) const;
  /// Gives back the memory of a tensor's data that was read; the data stays there to be read again.
  void release(const GgufTensor& tensor) const;
  /// Says that reads will be short and far apart: the system then reads nothing around them, which
  /// can be megabytes each time.
  void expect_jumps() const;
  /// Starts reading bytes of a tensor's data, for later.
  void read_ahead(const GgufTensor& tensor, int64_t offset, int64_t size) const;

 private:
  GgufFile();
  void open_part(const std::string& path, int64_t part, int64_t count);
  struct Parts;
  std::string path_;
  uint32_t version_ = 0;
  GgufMetadata metadata_;
  std::vector<GgufTensor> tensors_;
  std::unique_ptr<Parts> parts_;
};

/// llama.cpp's name of part `part`, counted from 0: "a.gguf" -> "a-00002-of-00005.gguf".
std::string gguf_part_path(const std::string& path, int64_t part, int64_t count);
/// What that part says of itself: only the first tells of the model.
GgufMetadata gguf_part_metadata(const GgufMetadata& whole, int64_t part, int64_t count,
                                int64_t num_tensors);

/// Writes a GGUF v3 file aside and renames it in finish(); until then, or if the writer is
/// destroyed without finish(), an old file of that name stays whole and nothing is left behind. A
/// file of more tensor data than `max_part_bytes` (0: any) becomes parts of that much at most, or
/// of one tensor, as llama.cpp's converter splits it.
class GgufWriter {
 public:
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
    GgmlType type;
  };
  /// Writes header, metadata and tensor table at once; every tensor's place is known from then on.
  GgufWriter(const std::string& path, const GgufMetadata& metadata, std::vector<Tensor> tensors,
             int64_t max_part_bytes = 0);
  ~GgufWriter();
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  /// That are written: the path itself, or its parts.
  const std::vector<std::string>& paths() const;
  /// Appends to the data of the current tensor; tensors come in table order. Throws when more bytes
  /// come than its type and shape want, or when the disk is full.
  void write(std::span<const std::byte> bytes);
  /// The whole current tensor in pieces instead: put() takes each, from the tensor's byte `offset`
  /// on, in any order and from several threads. end_pieces() throws when they do not add up to it.
  void begin_pieces();
  void put(int64_t offset, std::span<const std::byte> bytes);
  void end_pieces();
  /// Checks that every tensor is complete and waits until all is on the disk: only the rename is
  /// left.
  void sync();
  /// sync(), rename.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
