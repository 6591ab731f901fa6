#include "quant/mix/imatrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <string_view>

#include "base/error.h"
#include "io/gguf.h"
#include "io/mapped_file.h"

namespace nibble {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr const char *kType = "general.type", *kDatasets = "imatrix.datasets",
                     *kChunkCount = "imatrix.chunk_count", *kChunkSize = "imatrix.chunk_size";
constexpr std::string_view kSums = ".in_sum2", kCounts = ".counts";

/// Throws unless the sums are rows of squares, one for each count.
void check_entry(const ImatrixEntry& entry) {
  check(
      !entry.counts.empty() && !entry.sums.empty() && entry.sums.size() % entry.counts.size() == 0,
      entry.sums.size(), " sums are no whole rows for ", entry.counts.size(), " counts");
  for (size_t i = 0; i < entry.sums.size(); ++i)
    check(std::isfinite(entry.sums[i]) && entry.sums[i] >= 0.0f, "sum ", i, " is ", entry.sums[i],
          ", wanted a finite number of at least 0");
}

/// A count as a file has it. Above 2^53 not every integer is a number.
int64_t count_of(double number, size_t index) {
  check(number >= 0.0 && number <= 0x1p53, "count ", index, " is ", number,
        ", wanted a number of activations");
  return std::llround(number);
}

/// Reads a .dat forward; every read is checked against the end.
class DatReader {
 public:
  explicit DatReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  bool at_end() const { return offset_ == bytes_.size(); }

  /// A number of `what`, at least `least`.
  int32_t read_count(std::string_view what, int32_t least) {
    const size_t at = offset_;
    int32_t count;
    std::memcpy(&count, take(sizeof count, what), sizeof count);
    check(count >= least, "byte ", at, ": ", what, " is ", count, ", wanted at least ", least);
    return count;
  }
  std::string read_string(std::string_view what) {
    const auto length = static_cast<size_t>(read_count(concat("the length of ", what), 0));
    return {reinterpret_cast<const char*>(take(length, what)), length};
  }
  std::vector<float> read_floats(size_t count, std::string_view what) {
    const std::byte* start = take(count * sizeof(float), what);
    std::vector<float> values(count);
    std::memcpy(values.data(), start, count * sizeof(float));
    return values;
  }

 private:
  const std::byte* take(size_t size, std::string_view what) {
    check(size <= bytes_.size() - offset_, "byte ", offset_, ": ", what, " wants ", size,
          " bytes, found the end of the file after ", bytes_.size() - offset_);
    const std::byte* start = bytes_.data() + offset_;
    offset_ += size;
    return start;
  }

  std::span<const std::byte> bytes_;
  size_t offset_ = 0;
};

void read_dat_entry(DatReader& reader, Imatrix& imatrix) {
  const std::string name = reader.read_string("the name");
  const int32_t calls = reader.read_count("the number of calls", 0);
  const auto size = static_cast<size_t>(reader.read_count("the number of values", 1));
  // Where there were no calls the values are the mean squares themselves.
  ImatrixEntry entry = {reader.read_floats(size, "the values"), {std::max(calls, 1)}};
  with_frame("'" + name + "'", [&] {
    check_entry(entry);
    check(imatrix.entries.emplace(name, std::move(entry)).second, "comes twice");
  });
}

Imatrix read_dat(std::span<const std::byte> bytes) {
  DatReader reader(bytes);
  Imatrix imatrix;
  const int32_t num_entries = reader.read_count("the number of entries", 1);
  for (int32_t i = 0; i < num_entries; ++i)
    with_frame(concat("entry ", i), [&] { read_dat_entry(reader, imatrix); });
  if (!reader.at_end()) imatrix.chunk_count = reader.read_count("the number of chunks", 0);
  if (!reader.at_end()) imatrix.datasets = {reader.read_string("the text's name")};
  return imatrix;
}

std::vector<float> floats_of(const GgufTensor& tensor) {
  check(tensor.type == GgmlType::kF32, "tensor '", tensor.name, "': wants F32, found ",
        type_name(tensor.type));
  std::vector<float> values(static_cast<size_t>(tensor.num_weights()));
  std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

int64_t read_small_count(const GgufMetadata& metadata, const char* key) {
  const int64_t count = metadata.get_int(key);
  check(count >= 0 && count <= std::numeric_limits<int32_t>::max(), "metadata key '", key,
        "': ", count, " is no number of chunks or tokens");
  return count;
}

ImatrixEntry read_gguf_entry(const GgufTensor& sums, const GgufTensor& counts) {
  ImatrixEntry entry = {floats_of(sums), {}};
  const std::vector<float> numbers = floats_of(counts);
  with_frame(concat("tensor '", counts.name, "'"), [&] {
    for (size_t i = 0; i < numbers.size(); ++i) entry.counts.push_back(count_of(numbers[i], i));
  });
  with_frame(concat("tensor '", sums.name, "'"), [&] { check_entry(entry); });
  return entry;
}

Imatrix read_gguf(const GgufFile& file) {
  const GgufMetadata& metadata = file.metadata();
  const std::string type = metadata.get_string_or(kType, "imatrix");
  check(type == "imatrix", "no importance matrix: metadata key '", kType, "' is '", type, "'");
  Imatrix imatrix;
  imatrix.datasets = metadata.get_strings(kDatasets);
  imatrix.chunk_count = read_small_count(metadata, kChunkCount);
  imatrix.chunk_size = read_small_count(metadata, kChunkSize);
  std::map<std::string_view, std::pair<const GgufTensor*, const GgufTensor*>> pairs;
  for (const GgufTensor& tensor : file.tensors()) {
    const std::string_view name = tensor.name;
    if (name.ends_with(kSums))
      pairs[name.substr(0, name.size() - kSums.size())].first = &tensor;
    else if (name.ends_with(kCounts))
      pairs[name.substr(0, name.size() - kCounts.size())].second = &tensor;
  }
  check(!pairs.empty(), "has no tensor '...", kSums, "'");
  for (const auto& [name, pair] : pairs) {
    check(pair.first && pair.second, "has no tensor '", name, pair.first ? kCounts : kSums, "'");
    imatrix.entries.emplace(name, read_gguf_entry(*pair.first, *pair.second));
  }
  return imatrix;
}

}  // namespace

Imatrix Imatrix::open(const std::string& path) {
  const MappedFile file(path);
  const std::span<const std::byte> bytes = file.bytes();
  const bool is_gguf =
      bytes.size() >= kMagic.size() && std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0;
  Imatrix imatrix;
  if (is_gguf) {
    const GgufFile gguf = GgufFile::open(path);
    imatrix = with_frame(path, [&] { return read_gguf(gguf); });
  } else {
    imatrix = with_frame(path + ": no GGUF file, read as a .dat", [&] { return read_dat(bytes); });
  }
  imatrix.path = path;
  return imatrix;
}

void Imatrix::write(const std::string& path) const {
  GgufMetadata metadata;
  metadata.set(kType, std::string("imatrix"));
  metadata.set(kDatasets, GgufArray{GgufValueType::kString, datasets});
  metadata.set(kChunkCount, static_cast<uint32_t>(chunk_count));
  metadata.set(kChunkSize, static_cast<uint32_t>(chunk_size));
  std::vector<GgufWriter::Tensor> table;
  // llama.cpp counts no dimensions of size 1 at the end.
  const auto shape = [](int64_t columns, int64_t experts) {
    return experts > 1 ? std::vector<int64_t>{columns, experts} : std::vector<int64_t>{columns};
  };
  for (const auto& [name, entry] : entries) {
    with_frame(name, [&entry = entry] { check_entry(entry); });
    const auto experts = static_cast<int64_t>(entry.counts.size());
    const int64_t columns = static_cast<int64_t>(entry.sums.size()) / experts;
    table.push_back({name + std::string(kSums), shape(columns, experts), GgmlType::kF32});
    table.push_back({name + std::string(kCounts), shape(1, experts), GgmlType::kF32});
  }
  GgufWriter writer(path, metadata, std::move(table));
  for (const auto& [name, entry] : entries) {
    const std::vector<float> counts(entry.counts.begin(), entry.counts.end());
    writer.write(std::as_bytes(std::span(entry.sums)));
    writer.write(std::as_bytes(std::span(counts)));
  }
  writer.finish();
}

std::vector<float> mean_squares(const ImatrixEntry& entry) {
  const size_t columns = entry.sums.size() / entry.counts.size();
  std::vector<float> means(entry.sums.size(), 1.0f);
  for (size_t i = 0; i < means.size(); ++i) {
    const auto count = static_cast<float>(entry.counts[i / columns]);
    if (count > 0.0f) means[i] = entry.sums[i] / count;
  }
  return means;
}

}  // namespace nibble
