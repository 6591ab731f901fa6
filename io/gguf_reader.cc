#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <iomanip>
#include <unordered_set>

#include "base/error.h"
#include "io/gguf.h"
#include "io/mapped_file.h"

static_assert(std::endian::native == std::endian::little, "GGUF is read in place, little-endian");

namespace nibble {
namespace {

constexpr uint32_t kMaxDimensions = 4;
constexpr uint32_t kDefaultAlignment = 32;
// The least that one key or one tensor takes in a file: with these a count is checked before it is
// believed.
constexpr int64_t kMinKeyBytes = 8 + 4 + 1;
constexpr int64_t kMinTensorBytes = 8 + 4 + 4 + 8;

/// A name from the file as an error may show it: short and printable.
std::string shown(std::string_view name) {
  constexpr size_t kLongest = 80;
  std::string text(name.substr(0, kLongest));
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 32 || c == 127; }, '?');
  return "'" + text + (name.size() > kLongest ? "...'" : "'");
}

/// Reads forward through a file's bytes; every read is checked against the end.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}

  int64_t offset() const { return offset_; }
  int64_t remaining() const { return static_cast<int64_t>(bytes_.size()) - offset_; }

  template <class T>
  T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof value, 1, what), sizeof value);
    return value;
  }

  std::string read_string(std::string_view what) {
    const uint64_t length = read<uint64_t>(what);
    return {reinterpret_cast<const char*>(take(length, 1, what)), static_cast<size_t>(length)};
  }

  /// A u64 count of things that take at least `least_bytes` each in the rest of the file.
  int64_t read_count(int64_t least_bytes, std::string_view what) {
    const int64_t at = offset_;
    const uint64_t count = read<uint64_t>(what);
    check(count <= static_cast<uint64_t>(remaining() / least_bytes), "byte ", at, ": ", what,
          " is ", count, ", but the rest of the file, ", remaining(),
          " bytes, has room for at most ", remaining() / least_bytes);
    return static_cast<int64_t>(count);
  }

  /// The next `count` elements of `element_bytes`, passed over.
  const std::byte* take(uint64_t count, uint64_t element_bytes, std::string_view what) {
    check(count <= static_cast<uint64_t>(remaining()) / element_bytes, "byte ", offset_, ": ", what,
          " wants ", count, element_bytes == 1 ? " bytes" : concat(" x ", element_bytes, " bytes"),
          ", found the end of the file after ", remaining());
    const std::byte* start = bytes_.data() + offset_;
    offset_ += static_cast<int64_t>(count * element_bytes);
    return start;
  }

 private:
  std::span<const std::byte> bytes_;
  int64_t offset_ = 0;
};

uint32_t read_header(Cursor& cursor) {
  const uint32_t magic = cursor.read<uint32_t>("the magic");
  check(magic == 0x46554747u, "byte 0: no GGUF file: wants the magic 'GGUF', found 0x", std::hex,
        std::setw(8), std::setfill('0'), magic);
  const uint32_t version = cursor.read<uint32_t>("the version");
  check((version & 0xffffu) != 0, "byte 4: a big-endian GGUF file; little-endian is wanted");
  check(version == 2 || version == 3, "byte 4: GGUF version ", version, "; 2 and 3 can be read");
  return version;
}

template <class T>
GgufArray read_numbers(Cursor& cursor, GgufValueType type) {
  const uint64_t count = cursor.read<uint64_t>("the array length");
  const std::byte* start = cursor.take(count, sizeof(T), "the array");
  std::vector<T> values(static_cast<size_t>(count));
  if (count > 0) std::memcpy(values.data(), start, count * sizeof(T));
  return {type, std::move(values)};
}

GgufArray read_bools(Cursor& cursor) {
  GgufArray array = read_numbers<uint8_t>(cursor, GgufValueType::kBool);
  for (uint8_t& x : std::get<std::vector<uint8_t>>(array.values)) x = x != 0;
  return array;
}

GgufArray read_strings(Cursor& cursor) {
  const int64_t count = cursor.read_count(8, "the array length");
  std::vector<std::string> values;
  values.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values.push_back(cursor.read_string("a string of the array"));
  return {GgufValueType::kString, std::move(values)};
}

GgufArray read_array(Cursor& cursor) {
  const int64_t at = cursor.offset();
  const uint32_t number = cursor.read<uint32_t>("the element type");
  const auto type = static_cast<GgufValueType>(number);
  switch (type) {
    case GgufValueType::kUint8:
      return read_numbers<uint8_t>(cursor, type);
    case GgufValueType::kInt8:
      return read_numbers<int8_t>(cursor, type);
    case GgufValueType::kUint16:
      return read_numbers<uint16_t>(cursor, type);
    case GgufValueType::kInt16:
      return read_numbers<int16_t>(cursor, type);
    case GgufValueType::kUint32:
      return read_numbers<uint32_t>(cursor, type);
    case GgufValueType::kInt32:
      return read_numbers<int32_t>(cursor, type);
    case GgufValueType::kFloat32:
      return read_numbers<float>(cursor, type);
    case GgufValueType::kBool:
      return read_bools(cursor);
    case GgufValueType::kString:
      return read_strings(cursor);
    case GgufValueType::kArray:
      fail("byte ", at, ": an array of arrays, which llama.cpp does not read either");
    case GgufValueType::kUint64:
      return read_numbers<uint64_t>(cursor, type);
    case GgufValueType::kInt64:
      return read_numbers<int64_t>(cursor, type);
    case GgufValueType::kFloat64:
      return read_numbers<double>(cursor, type);
  }
  fail("byte ", at, ": unknown element type ", number, "; 0 to 12 are known");
}

GgufValue read_value(Cursor& cursor) {
  const int64_t at = cursor.offset();
  const uint32_t number = cursor.read<uint32_t>("the value type");
  constexpr std::string_view kWhat = "the value";
  switch (static_cast<GgufValueType>(number)) {
    case GgufValueType::kUint8:
      return cursor.read<uint8_t>(kWhat);
    case GgufValueType::kInt8:
      return cursor.read<int8_t>(kWhat);
    case GgufValueType::kUint16:
      return cursor.read<uint16_t>(kWhat);
    case GgufValueType::kInt16:
      return cursor.read<int16_t>(kWhat);
    case GgufValueType::kUint32:
      return cursor.read<uint32_t>(kWhat);
    case GgufValueType::kInt32:
      return cursor.read<int32_t>(kWhat);
    case GgufValueType::kFloat32:
      return cursor.read<float>(kWhat);
    case GgufValueType::kBool:
      return cursor.read<uint8_t>(kWhat) != 0;
    case GgufValueType::kString:
      return cursor.read_string(kWhat);
    case GgufValueType::kArray:
      return read_array(cursor);
    case GgufValueType::kUint64:
      return cursor.read<uint64_t>(kWhat);
    case GgufValueType::kInt64:
      return cursor.read<int64_t>(kWhat);
    case GgufValueType::kFloat64:
      return cursor.read<double>(kWhat);
  }
  fail("byte ", at, ": unknown value type ", number, "; 0 to 12 are known");
}

GgufMetadata read_metadata(Cursor& cursor, int64_t num_keys) {
  GgufMetadata metadata;
  std::unordered_set<std::string> seen;  // so that a hostile count of keys costs no quadratic time
  std::vector<std::pair<std::string, GgufValue>> pairs;
  for (int64_t i = 0; i < num_keys; ++i) {
    const int64_t at = cursor.offset();
    std::string key = with_frame(concat("key ", i), [&] { return cursor.read_string("the name"); });
    check(seen.insert(key).second, "byte ", at, ": key ", shown(key), " comes twice");
    GgufValue value = with_frame("key " + shown(key), [&] { return read_value(cursor); });
    pairs.emplace_back(std::move(key), std::move(value));
  }
  return GgufMetadata(std::move(pairs));
}

int64_t read_alignment(const GgufMetadata& metadata) {
  const GgufValue* value = metadata.find("general.alignment");
  if (!value) return kDefaultAlignment;
  const uint32_t* alignment = std::get_if<uint32_t>(value);
  check(alignment, "key 'general.alignment': wants uint32, found ",
        value_type_name(value_type(*value)));
  check(std::has_single_bit(*alignment), "key 'general.alignment': wants a power of two, found ",
        *alignment);
  return *alignment;
}

/// One row of the tensor table. The offset is still the file's own, from the data section, in
/// `file_offset`.
GgufTensor read_tensor_row(Cursor& cursor) {
  GgufTensor tensor;
  tensor.name = cursor.read_string("the name");
  return with_frame("tensor " + shown(tensor.name), [&] {
    int64_t at = cursor.offset();
    const uint32_t dimensions = cursor.read<uint32_t>("the number of dimensions");
    check(dimensions <= kMaxDimensions, "byte ", at, ": ", dimensions, " dimensions; at most ",
          kMaxDimensions, " are possible");
    int64_t weights = 1;
    for (uint32_t i = 0; i < dimensions; ++i) {
      at = cursor.offset();
      const int64_t size = cursor.read<int64_t>("a dimension");
      check(size > 0, "byte ", at, ": dimension ", i, " is ", size, "; it must be positive");
      check(!__builtin_mul_overflow(weights, size, &weights), "byte ", at, ": dimension ", i,
            " is ", size, ", with which the number of weights does not fit 63 bits");
      tensor.shape.push_back(size);
    }
    at = cursor.offset();
    const uint32_t number = cursor.read<uint32_t>("the type");
    const GgmlTypeInfo* info = find_ggml_type(number);
    check(info, "byte ", at, ": unknown tensor type ", number);
    check(tensor.row_length() % info->block_size == 0, "byte ", at, ": rows of ",
          tensor.row_length(), " weights cannot be ", info->name, ", whose blocks hold ",
          info->block_size);
    tensor.type = info->type;
    at = cursor.offset();
    const uint64_t offset = cursor.read<uint64_t>("the offset");
    check(std::in_range<int64_t>(offset), "byte ", at, ": offset ", offset,
          " lies past the end of the file");
    tensor.file_offset = static_cast<int64_t>(offset);
    return std::move(tensor);
  });
}

/// Turns the table's offset into a place in the file and the data into a view of it.
void place_tensor(GgufTensor& tensor, std::span<const std::byte> file, int64_t data_start,
                  int64_t alignment) {
  const GgmlTypeInfo& info = ggml_type_info(tensor.type);
  const int64_t offset = tensor.file_offset;
  const int64_t room = std::max<int64_t>(0, static_cast<int64_t>(file.size()) - data_start);
  int64_t bytes;
  check(offset % alignment == 0, "offset ", offset, " is no multiple of the alignment ", alignment);
  check(!__builtin_mul_overflow(tensor.num_weights() / info.block_size, info.block_bytes, &bytes) &&
            offset <= room && bytes <= room - offset,
        "wants ", tensor.num_weights(), " weights of ", info.name, " at byte ", offset,
        " of the data section, which starts at byte ", data_start, " and has ", room, " bytes");
  tensor.file_offset = data_start + offset;
  tensor.data = file.subspan(static_cast<size_t>(tensor.file_offset), static_cast<size_t>(bytes));
}

void check_no_overlap(const std::vector<GgufTensor>& tensors) {
  std::vector<const GgufTensor*> order;
  for (const GgufTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(),
            [](const auto* a, const auto* b) { return a->file_offset < b->file_offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const GgufTensor& previous = *order[i - 1];
    const auto previous_end = previous.file_offset + static_cast<int64_t>(previous.data.size());
    check(previous_end <= order[i]->file_offset, "byte ", order[i]->file_offset, ": tensor ",
          shown(order[i]->name), " overlaps tensor ", shown(previous.name), ", which ends at byte ",
          previous_end);
  }
}

struct ParsedFile {
  uint32_t version;
  GgufMetadata metadata;
  std::vector<GgufTensor> tensors;
};

ParsedFile parse_file(std::span<const std::byte> bytes) {
  Cursor cursor(bytes);
  ParsedFile parsed;
  parsed.version = read_header(cursor);
  const int64_t num_tensors = cursor.read_count(kMinTensorBytes, "the number of tensors");
  const int64_t num_keys = cursor.read_count(kMinKeyBytes, "the number of keys");
  parsed.metadata = read_metadata(cursor, num_keys);
  const int64_t alignment = read_alignment(parsed.metadata);
  for (int64_t i = 0; i < num_tensors; ++i)
    parsed.tensors.push_back(
        with_frame(concat("tensor ", i), [&] { return read_tensor_row(cursor); }));
  const int64_t data_start = (cursor.offset() + alignment - 1) / alignment * alignment;
  for (GgufTensor& tensor : parsed.tensors)
    with_frame("tensor " + shown(tensor.name),
               [&] { place_tensor(tensor, bytes, data_start, alignment); });
  check_no_overlap(parsed.tensors);
  return parsed;
}

/// "name-00002-of-00005.gguf" for the first part's path "name-00001-of-00005.gguf".
std::string part_path(const std::string& first, int64_t part, int64_t count) {
  const std::string wanted = gguf_part_path("", 0, count);
  check(first.ends_with(wanted), "the first of ", count, " parts: its name must end in '", wanted,
        "'");
  return gguf_part_path(first.substr(0, first.size() - wanted.size()), part, count);
}

void check_names_differ(const std::vector<GgufTensor>& tensors) {
  std::unordered_set<std::string_view> seen;
  for (const GgufTensor& tensor : tensors)
    check(seen.insert(tensor.name).second, "tensor ", shown(tensor.name), " comes twice");
}

}  // namespace

struct GgufFile::Parts {
  std::vector<MappedFile> files;
};

GgufFile::GgufFile() : parts_(std::make_unique<Parts>()) {}
GgufFile::GgufFile(GgufFile&&) noexcept = default;
GgufFile& GgufFile::operator=(GgufFile&&) noexcept = default;
GgufFile::~GgufFile() = default;

GgufFile GgufFile::open(const std::string& path) {
  std::error_code ignored;
  check(!std::filesystem::exists(path + "/config.json", ignored), path,
        ": is the folder of a Hugging Face model; nibble convert ", path,
        " OUT.gguf makes a GGUF file of it");
  GgufFile file;
  file.path_ = path;
  file.parts_->files.emplace_back(path);
  with_frame(path, [&] {
    ParsedFile first = parse_file(file.parts_->files[0].bytes());
    file.version_ = first.version;
    file.metadata_ = std::move(first.metadata);
    file.tensors_ = std::move(first.tensors);
    const int64_t count = file.metadata_.get_int_or("split.count", 0);
    const int64_t number = file.metadata_.get_int_or("split.no", 0);
    check(count <= 1 || number == 0, "part ", number + 1, " of ", count, "; give the first part");
    for (int64_t part = 1; part < count; ++part)
      file.open_part(part_path(path, part, count), part, count);
    const auto found = static_cast<int64_t>(file.tensors_.size());
    const int64_t wanted = file.metadata_.get_int_or("split.tensors.count", found);
    check(count <= 1 || wanted == found, "its parts should hold ", wanted, " tensors, found ",
          found);
    check_names_differ(file.tensors_);
  });
  return file;
}

GgufFile GgufFile::layout(std::string path, GgufMetadata metadata,
                          std::vector<GgufTensor> tensors) {
  GgufFile file;
  file.path_ = std::move(path);
  file.metadata_ = std::move(metadata);
  file.tensors_ = std::move(tensors);
  return file;
}

void GgufFile::open_part(const std::string& path, int64_t part, int64_t count) {
  parts_->files.emplace_back(path);
  with_frame(path, [&] {
    ParsedFile parsed = parse_file(parts_->files.back().bytes());
    const int64_t number = parsed.metadata.get_int("split.no");
    check(number == part && parsed.metadata.get_int("split.count") == count, "wants part ",
          part + 1, " of ", count, ", found part ", number + 1, " of ",
          parsed.metadata.get_int("split.count"));
    for (GgufTensor& tensor : parsed.tensors) {
      tensor.part = static_cast<int>(part);
      tensors_.push_back(std::move(tensor));
    }
  });
}

int64_t GgufFile::file_bytes() const {
  int64_t total = 0;
  for (const MappedFile& file : parts_->files) total += static_cast<int64_t>(file.bytes().size());
  return total;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  for (const GgufTensor& tensor : tensors_)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

const GgufTensor& GgufFile::tensor(std::string_view name) const {
  const GgufTensor* found = find_tensor(name);
  check(found, path_, ": has no tensor '", name, "'");
  return *found;
}

void GgufFile::expect_jumps() const {
  for (const MappedFile& file : parts_->files) file.expect_jumps();
}

void GgufFile::read_ahead(const GgufTensor& tensor, int64_t offset, int64_t size) const {
  parts_->files[static_cast<size_t>(tensor.part)].read_ahead(tensor.file_offset + offset, size);
}

void GgufFile::release(const GgufTensor& tensor) const {
  parts_->files[static_cast<size_t>(tensor.part)].release(tensor.file_offset,
                                                          static_cast<int64_t>(tensor.data.size()));
}

int64_t GgufTensor::num_weights() const {
  int64_t weights = 1;
  for (const int64_t size : shape) weights *= size;
  return weights;
}

}  // namespace nibble
