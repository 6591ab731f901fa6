#include <atomic>
#include <bit>
#include <cstdio>
#include <memory>
#include <unordered_set>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/gguf.h"

namespace nibble {
namespace {

constexpr uint32_t kVersion = 3;
constexpr uint32_t kDefaultAlignment = 32;

int64_t aligned(int64_t offset, int64_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

template <class T>
void append(std::string& out, const T& number) {
  out.append(reinterpret_cast<const char*>(&number), sizeof number);
}

void append(std::string& out, const std::string& text) {
  append(out, static_cast<uint64_t>(text.size()));
  out += text;
}

void append(std::string& out, const GgufArray& array) {
  append(out, static_cast<uint32_t>(array.type));
  append(out, static_cast<uint64_t>(array.size()));
  std::visit(
      [&](const auto& values) {
        for (const auto& x : values) append(out, x);
      },
      array.values);
}

std::string serialize(const GgufMetadata& metadata) {
  std::string out;
  for (const auto& [key, value] : metadata.pairs()) {
    append(out, key);
    append(out, static_cast<uint32_t>(value_type(value)));
    std::visit([&](const auto& x) { append(out, x); }, value);
  }
  return out;
}

int64_t alignment_of(const GgufMetadata& metadata) {
  const GgufValue* value = metadata.find("general.alignment");
  if (!value) return kDefaultAlignment;
  const uint32_t* alignment = std::get_if<uint32_t>(value);
  check(alignment && std::has_single_bit(*alignment),
        "metadata key 'general.alignment': wants a power of two of type uint32");
  return *alignment;
}

int64_t bytes_of(const GgufWriter::Tensor& tensor) {
  int64_t bytes = row_bytes(tensor.type, tensor.shape.empty() ? 1 : tensor.shape[0]);
  for (size_t i = 1; i < tensor.shape.size(); ++i) bytes *= tensor.shape[i];
  return bytes;
}

void check_tensors(const std::vector<GgufWriter::Tensor>& tensors) {
  std::unordered_set<std::string_view> names;
  for (const GgufWriter::Tensor& tensor : tensors) {
    check(names.insert(tensor.name).second, "tensor '", tensor.name, "' comes twice");
    check(tensor.shape.size() <= 4, "tensor '", tensor.name, "': ", tensor.shape.size(),
          " dimensions; at most 4 are possible");
    const int64_t row = tensor.shape.empty() ? 1 : tensor.shape[0];
    const int64_t block = ggml_type_info(tensor.type).block_size;
    check(row % block == 0, "tensor '", tensor.name, "': rows of ", row, " weights cannot be ",
          type_name(tensor.type), ", whose blocks hold ", block);
  }
}

}  // namespace

std::string gguf_part_path(const std::string& path, int64_t part, int64_t count) {
  constexpr std::string_view kEnding = ".gguf";
  const bool ends = path.ends_with(kEnding);
  char number[48];
  std::snprintf(number, sizeof number, "-%05lld-of-%05lld", static_cast<long long>(part + 1),
                static_cast<long long>(count));
  return concat(path.substr(0, path.size() - (ends ? kEnding.size() : 0)), number, kEnding);
}

GgufMetadata gguf_part_metadata(const GgufMetadata& whole, int64_t part, int64_t count,
                                int64_t num_tensors) {
  if (count == 1) return whole;
  GgufMetadata metadata = part == 0 ? whole : GgufMetadata();
  metadata.set("split.no", static_cast<uint16_t>(part));
  metadata.set("split.count", static_cast<uint16_t>(count));
  metadata.set("split.tensors.count", static_cast<int32_t>(num_tensors));
  return metadata;
}

struct GgufWriter::State {
  std::vector<Tensor> tensors;
  std::vector<size_t> part_of;  // each tensor's file
  std::vector<std::string> paths{};
  std::vector<std::unique_ptr<AtomicFile>> files{};
  std::vector<int64_t> alignments{};  // of the files: each has it in its metadata, or the default
  size_t current = 0;                 // the tensor that is being written
  int64_t begin = 0;                  // of its pieces, in the file
  std::atomic<int64_t> written{0};    // its bytes so far

  AtomicFile& file() const { return *files[part_of[current]]; }
  [[noreturn]] void fail_incomplete() const {
    fail("tensor '", tensors[current].name, "': wants ", bytes_of(tensors[current]),
         " bytes, found ", written.load());
  }
  void check_complete() const {
    if (current < tensors.size()) fail_incomplete();
  }

  void pad(size_t part) const {
    AtomicFile& padded = *files[part];
    const int64_t size = padded.size();
    padded.write(std::string(static_cast<size_t>(aligned(size, alignments[part]) - size), '\0'));
  }
  void end_tensor() {
    pad(part_of[current]);
    written = 0;
    ++current;
  }
  /// Header, metadata and tensor table of one file.
  void begin_file(const GgufMetadata& metadata, size_t part) {
    std::string table;
    int64_t offset = 0;
    uint64_t count = 0;
    alignments.push_back(alignment_of(metadata));
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (part_of[i] != part) continue;
      const Tensor& tensor = tensors[i];
      append(table, tensor.name);
      append(table, static_cast<uint32_t>(tensor.shape.size()));
      for (const int64_t size : tensor.shape) append(table, size);
      append(table, static_cast<uint32_t>(tensor.type));
      append(table, static_cast<uint64_t>(offset));
      offset = aligned(offset + bytes_of(tensor), alignments[part]);
      ++count;
    }
    std::string header = "GGUF";
    append(header, kVersion);
    append(header, count);
    append(header, static_cast<uint64_t>(metadata.pairs().size()));
    files.push_back(std::make_unique<AtomicFile>(paths[part]));
    files.back()->write(header);
    files.back()->write(serialize(metadata));
    files.back()->write(table);
    pad(part);
  }
};

namespace {

/// The part of each tensor: the next one begins where a tensor would be too much.
std::vector<size_t> parts_of(const std::vector<GgufWriter::Tensor>& tensors, int64_t max_bytes) {
  std::vector<size_t> parts;
  int64_t bytes = 0;
  size_t part = 0;
  for (const GgufWriter::Tensor& tensor : tensors) {
    const int64_t more = bytes_of(tensor);
    if (max_bytes > 0 && bytes > 0 && bytes + more > max_bytes) {
      ++part;
      bytes = 0;
    }
    bytes += more;
    parts.push_back(part);
  }
  return parts;
}

}  // namespace

GgufWriter::GgufWriter(const std::string& path, const GgufMetadata& metadata,
                       std::vector<Tensor> tensors, int64_t max_part_bytes) {
  with_frame(path, [&] {
    check_tensors(tensors);
    alignment_of(metadata);
  });
  std::vector<size_t> part_of = parts_of(tensors, max_part_bytes);
  const auto count = static_cast<int64_t>(part_of.empty() ? 1 : part_of.back() + 1);
  with_frame(path, [&] {
    check(count <= UINT16_MAX, "parts of ", max_part_bytes, " bytes would be ", count,
          "; at most 65535 are possible");
  });
  state_.reset(new State{std::move(tensors), std::move(part_of)});
  const auto num_tensors = static_cast<int64_t>(state_->tensors.size());
  for (int64_t part = 0; part < count; ++part) {
    state_->paths.push_back(count == 1 ? path : gguf_part_path(path, part, count));
    state_->begin_file(gguf_part_metadata(metadata, part, count, num_tensors),
                       static_cast<size_t>(part));
  }
}

GgufWriter::~GgufWriter() = default;

const std::vector<std::string>& GgufWriter::paths() const { return state_->paths; }

void GgufWriter::write(std::span<const std::byte> bytes) {
  check(state_->current < state_->tensors.size(), "bytes after the last tensor");
  const Tensor& tensor = state_->tensors[state_->current];
  const int64_t size = bytes_of(tensor);
  const auto more = static_cast<int64_t>(bytes.size());
  check(more <= size - state_->written, "tensor '", tensor.name, "': wants ", size,
        " bytes, found ", state_->written + more);
  state_->file().write(bytes);
  state_->written += more;
  if (state_->written == size) state_->end_tensor();
}

void GgufWriter::begin_pieces() {
  check(state_->current < state_->tensors.size() && state_->written == 0,
        "pieces of a tensor that is not the next one");
  state_->begin = state_->file().reserve(bytes_of(state_->tensors[state_->current]));
}

void GgufWriter::put(int64_t offset, std::span<const std::byte> bytes) {
  const Tensor& tensor = state_->tensors[state_->current];
  const int64_t size = bytes_of(tensor);
  const auto more = static_cast<int64_t>(bytes.size());
  check(offset >= 0 && more <= size - offset, "tensor '", tensor.name, "': wants ", size,
        " bytes, found ", more, " for byte ", offset);
  state_->file().write_at(state_->begin + offset, bytes);
  state_->written += more;
}

void GgufWriter::end_pieces() {
  if (state_->written != bytes_of(state_->tensors[state_->current])) state_->fail_incomplete();
  state_->end_tensor();
}

void GgufWriter::sync() {
  state_->check_complete();
  for (const auto& file : state_->files) file->sync();
}

void GgufWriter::finish() {
  if (state_->files.size() > 1) sync();
  state_->check_complete();
  for (const auto& file : state_->files) file->commit();
}

}  // namespace nibble
