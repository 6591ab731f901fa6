#include "io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>
#include <utility>

#include "base/checksum.h"
#include "base/error.h"
#include "io/atomic_file.h"
#include "io/json.h"
#include "io/mapped_file.h"

namespace nibble {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr uint64_t kLengthBytes = 8;
// The reference implementation's own limit on the header.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
// header object > entry object > shape array
constexpr int kMaxNesting = 3;
constexpr std::string_view kMetadataKey = "__metadata__";

struct Dtype {
  std::string_view name;
  int64_t bytes;
};
constexpr Dtype kDtypes[] = {{"BOOL", 1},    {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
                             {"F8_E8M0", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},     {"BF16", 2},
                             {"U32", 4},     {"I32", 4}, {"F32", 4}, {"U64", 8},     {"I64", 8},
                             {"F64", 8},     {"C64", 8}};

int64_t dtype_bytes(std::string_view name) {
  const auto* found = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                   [&](const Dtype& dtype) { return dtype.name == name; });
  if (found == std::end(kDtypes)) {
    std::vector<std::string> names;
    for (const Dtype& dtype : kDtypes) names.emplace_back(dtype.name);
    fail("unknown dtype '", name, "'", did_you_mean(name, names));
  }
  return found->bytes;
}

// Bytes of a tensor; refuses negative sizes and products beyond int64.
int64_t tensor_bytes(std::string_view dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = dtype_bytes(dtype);
  for (const int64_t size : shape) {
    check(size >= 0, "a dimension of ", size);
    check(!__builtin_mul_overflow(bytes, size, &bytes), "shape has more than 2^63 bytes");
  }
  return bytes;
}

const Json& member(const Json& object, const char* key) {
  const auto found = object.find(key);
  check(found != object.end(), "has no '", key, "'");
  return *found;
}

int64_t to_size(const Json& value, const char* key) {
  check(value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{INT64_MAX}, "'", key,
        "' holds ", value.dump(), ", wanted an integer from 0 to 2^63 - 1");
  return value.get<int64_t>();
}

// One entry of the header and where its data begins and ends, from the start of the data section.
struct PlacedEntry {
  SafetensorsEntry entry;
  int64_t begin = 0, end = 0;
};

PlacedEntry parse_entry(const std::string& name, const Json& json, int64_t data_bytes) {
  check(json.is_object(), "is a JSON ", json.type_name(), ", not an object");
  const Json& dtype = member(json, "dtype");
  const Json& shape = member(json, "shape");
  const Json& offsets = member(json, "data_offsets");
  check(json.size() == 3, "has members other than dtype, shape and data_offsets");
  check(dtype.is_string(), "'dtype' is not a string");
  check(shape.is_array(), "'shape' is not an array");
  check(offsets.is_array() && offsets.size() == 2, "'data_offsets' is not an array of two");

  PlacedEntry placed;
  placed.entry.name = name;
  placed.entry.dtype = dtype.get<std::string>();
  for (const Json& size : shape) placed.entry.shape.push_back(to_size(size, "shape"));
  placed.begin = to_size(offsets[0], "data_offsets");
  placed.end = to_size(offsets[1], "data_offsets");
  check(placed.begin <= placed.end && placed.end <= data_bytes, "data offsets ", placed.begin,
        " to ", placed.end, " do not lie in the file's ", data_bytes, " data bytes");
  const int64_t wanted = tensor_bytes(placed.entry.dtype, placed.entry.shape);
  check(placed.end - placed.begin == wanted, "has ", placed.end - placed.begin,
        " data bytes, its dtype and shape want ", wanted);
  return placed;
}

std::map<std::string, std::string> parse_metadata(const Json& json) {
  check(json.is_object(), "is not an object");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : json.items()) {
    check(value.is_string(), "value of '", key, "' is not a string");
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

// Sorts by place and checks that the entries cover [0, data_bytes) exactly once.
void sort_and_check_cover(std::vector<PlacedEntry>& placed, int64_t data_bytes) {
  std::sort(placed.begin(), placed.end(), [](const PlacedEntry& a, const PlacedEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t covered = 0;
  for (const PlacedEntry& each : placed) {
    check(each.begin == covered, "entry '", each.entry.name, "' begins at data offset ", each.begin,
          each.begin < covered ? ", inside the entry before it" : ", behind a hole", ", wanted ",
          covered);
    covered = each.end;
  }
  check(covered == data_bytes, "entries end at data offset ", covered, ", the file has ",
        data_bytes, " data bytes");
}

// The header's text, padded with spaces so that the data section starts at a multiple of 8.
std::string make_header(const std::vector<const SafetensorsEntry*>& entries,
                        const std::map<std::string, std::string>& metadata) {
  OrderedJson header = OrderedJson::object();
  if (!metadata.empty()) header[std::string(kMetadataKey)] = metadata;
  int64_t offset = 0;
  for (const SafetensorsEntry* entry : entries) {
    const int64_t end = offset + tensor_bytes(entry->dtype, entry->shape);
    header[entry->name] = {
        {"dtype", entry->dtype}, {"shape", entry->shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  try {
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return text;
  } catch (const Json::type_error&) {
    fail("a name or metadata value is not UTF-8");
  }
}

std::string frame_of(const SafetensorsEntry& entry) { return concat("entry '", entry.name, "'"); }

void check_data_bytes(const SafetensorsEntry& entry, int64_t found) {
  const int64_t wanted = tensor_bytes(entry.dtype, entry.shape);
  check(found == wanted, "has ", found, " data bytes, its dtype and shape want ", wanted);
}

// In the order of their data, with the header's text.
std::pair<std::vector<const SafetensorsEntry*>, std::string> lay_out(
    const std::vector<SafetensorsEntry>& entries,
    const std::map<std::string, std::string>& metadata) {
  std::set<std::string_view> names;
  std::vector<const SafetensorsEntry*> order;
  for (const SafetensorsEntry& entry : entries) {
    with_frame(frame_of(entry), [&] {
      check(entry.name != kMetadataKey, "the name is reserved");
      check(names.insert(entry.name).second, "the name comes twice");
      tensor_bytes(entry.dtype, entry.shape);
    });
    order.push_back(&entry);
  }
  // Stable: the checksum stays the last of its size, the smallest.
  std::stable_sort(order.begin(), order.end(),
                   [](const SafetensorsEntry* a, const SafetensorsEntry* b) {
                     return dtype_bytes(a->dtype) > dtype_bytes(b->dtype);
                   });
  std::string header = make_header(order, metadata);
  check(header.size() <= kMaxHeaderBytes, "header of ", header.size(), " bytes, at most ",
        kMaxHeaderBytes, " are allowed");
  return {std::move(order), std::move(header)};
}

void write_header(const std::string& header, const SafetensorsSink& write) {
  const uint64_t header_bytes = header.size();
  write(std::as_bytes(std::span(&header_bytes, 1)));
  write(std::as_bytes(std::span(header)));
}

}  // namespace

struct SafetensorsFile::Map {
  explicit Map(const std::string& path) : file(path) {}
  MappedFile file;
};

SafetensorsFile::SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;
SafetensorsFile::~SafetensorsFile() = default;

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  SafetensorsFile file;
  file.path_ = path;
  file.map_ = std::make_unique<Map>(path);
  with_frame(path, [&] { file.read(file.map_->file.bytes()); });
  return file;
}

void SafetensorsFile::read(std::span<const std::byte> bytes) {
  check(bytes.size() >= kLengthBytes, "file of ", bytes.size(),
        " bytes is too short for a header length");
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  check(header_bytes <= bytes.size() - kLengthBytes, "byte offset 0: header of ", header_bytes,
        " bytes, the file has ", bytes.size() - kLengthBytes, " after its length");
  check(header_bytes <= kMaxHeaderBytes, "byte offset 0: header of ", header_bytes,
        " bytes, at most ", kMaxHeaderBytes, " are allowed");
  const auto data = bytes.subspan(kLengthBytes + header_bytes);
  const auto data_bytes = static_cast<int64_t>(data.size());
  const Json header =
      parse_json_object({reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, header_bytes},
                        "header", kMaxNesting, kLengthBytes);

  std::vector<PlacedEntry> placed;
  for (const auto& item : header.items()) {
    with_frame(concat("entry '", item.key(), "'"), [&] {
      if (item.key() == kMetadataKey)
        metadata_ = parse_metadata(item.value());
      else
        placed.push_back(parse_entry(item.key(), item.value(), data_bytes));
    });
  }
  sort_and_check_cover(placed, data_bytes);
  for (PlacedEntry& each : placed) {
    each.entry.data = data.subspan(each.begin, each.end - each.begin);
    entries_.push_back(std::move(each.entry));
  }
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found =
      std::find_if(entries_.begin(), entries_.end(),
                   [&](const SafetensorsEntry& entry) { return entry.name == name; });
  return found == entries_.end() ? nullptr : &*found;
}

const SafetensorsEntry& SafetensorsFile::entry(std::string_view name) const {
  if (const SafetensorsEntry* found = find(name)) return *found;
  std::vector<std::string> names;
  for (const SafetensorsEntry& entry : entries_) names.push_back(entry.name);
  fail(path_, ": no entry '", name, "'", did_you_mean(name, names));
}

void SafetensorsFile::release(const SafetensorsEntry& entry) const {
  map_->file.release(entry.data.data() - map_->file.bytes().data(),
                     static_cast<int64_t>(entry.data.size()));
}

void SafetensorsFile::verify_checksum() const {
  const bool last = !entries_.empty() && entries_.back().name == kChecksumEntry;
  check(last && entries_.back().data.size() == sizeof(uint64_t), path_,
        ": does not end with a checksum");
  uint64_t stored;
  std::memcpy(&stored, entries_.back().data.data(), sizeof stored);
  const auto bytes = map_->file.bytes();
  Checksum checksum;
  checksum.update(bytes.first(bytes.size() - sizeof stored));
  check(checksum.value() == stored, path_, ": damaged: its bytes have the checksum ",
        checksum.value(), ", it was written with ", stored);
}

void write_safetensors(const std::string& path, const std::vector<SafetensorsEntry>& entries,
                       const std::map<std::string, std::string>& metadata,
                       const SafetensorsWriting& writing) {
  write_safetensors(
      path, entries, metadata,
      [](const SafetensorsEntry& entry, const SafetensorsSink& sink) { sink(entry.data); },
      writing);
}

void write_safetensors(const std::string& path, const std::vector<SafetensorsEntry>& entries,
                       const std::map<std::string, std::string>& metadata,
                       const SafetensorsSource& source, const SafetensorsWriting& writing) {
  uint64_t sum = 0;  // of all that is written before it
  std::vector<SafetensorsEntry> all = entries;
  if (writing.checksum)
    all.push_back({std::string(kChecksumEntry), "U8", {8}, std::as_bytes(std::span(&sum, 1))});
  const auto [order, header] = with_frame(path, [&] { return lay_out(all, metadata); });
  AtomicFile file(path);
  Checksum checksum;
  const auto write = [&](std::span<const std::byte> bytes) {
    if (writing.checksum) checksum.update(bytes);
    file.write(bytes);
  };
  write_header(header, write);
  for (const SafetensorsEntry* entry : order) {
    if (entry->name == kChecksumEntry) {
      sum = checksum.value();
      write(entry->data);
      continue;
    }
    with_frame(concat(path, ": ", frame_of(*entry)), [&] {
      int64_t written = 0;
      source(*entry, [&](std::span<const std::byte> bytes) {
        write(bytes);
        written += static_cast<int64_t>(bytes.size());
      });
      check_data_bytes(*entry, written);
    });
  }
  file.commit(writing.keep_old_as);
}

}  // namespace nibble
