#include <atomic>
#include <bit>
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

struct GgufWriter::State {
  AtomicFile file;
  std::vector<Tensor> tensors;
  int64_t alignment;
  size_t current = 0;               // the tensor that is being written
  int64_t begin = 0;                // of its pieces, in the file
  std::atomic<int64_t> written{0};  // its bytes so far

  [[noreturn]] void fail_incomplete() const {
    fail("tensor '", tensors[current].name, "': wants ", bytes_of(tensors[current]),
         " bytes, found ", written.load());
  }
  void check_complete() const {
    if (current < tensors.size()) fail_incomplete();
  }

  void pad() {
    file.write(
        std::string(static_cast<size_t>(aligned(file.size(), alignment) - file.size()), '\0'));
  }
};

GgufWriter::GgufWriter(std::string path, const GgufMetadata& metadata,
                       std::vector<Tensor> tensors) {
  with_frame(path, [&] {
    check_tensors(tensors);
    alignment_of(metadata);
  });
  const int64_t alignment = alignment_of(metadata);
  std::string table;
  int64_t offset = 0;
  for (const Tensor& tensor : tensors) {
    append(table, tensor.name);
    append(table, static_cast<uint32_t>(tensor.shape.size()));
    for (const int64_t size : tensor.shape) append(table, size);
    append(table, static_cast<uint32_t>(tensor.type));
    append(table, static_cast<uint64_t>(offset));
    offset = aligned(offset + bytes_of(tensor), alignment);
  }
  std::string header = "GGUF";
  append(header, kVersion);
  append(header, static_cast<uint64_t>(tensors.size()));
  append(header, static_cast<uint64_t>(metadata.pairs().size()));
  state_.reset(new State{AtomicFile(std::move(path)), std::move(tensors), alignment});
  state_->file.write(header);
  state_->file.write(serialize(metadata));
  state_->file.write(table);
  state_->pad();
}

GgufWriter::~GgufWriter() = default;

void GgufWriter::write(std::span<const std::byte> bytes) {
  check(state_->current < state_->tensors.size(), "bytes after the last tensor");
  const Tensor& tensor = state_->tensors[state_->current];
  const int64_t size = bytes_of(tensor);
  const auto more = static_cast<int64_t>(bytes.size());
  check(more <= size - state_->written, "tensor '", tensor.name, "': wants ", size,
        " bytes, found ", state_->written + more);
  state_->file.write(bytes);
  state_->written += more;
  if (state_->written < size) return;
  state_->pad();
  state_->written = 0;
  ++state_->current;
}

void GgufWriter::begin_pieces() {
  check(state_->current < state_->tensors.size() && state_->written == 0,
        "pieces of a tensor that is not the next one");
  state_->begin = state_->file.reserve(bytes_of(state_->tensors[state_->current]));
}

void GgufWriter::put(int64_t offset, std::span<const std::byte> bytes) {
  const Tensor& tensor = state_->tensors[state_->current];
  const int64_t size = bytes_of(tensor);
  const auto more = static_cast<int64_t>(bytes.size());
  check(offset >= 0 && more <= size - offset, "tensor '", tensor.name, "': wants ", size,
        " bytes, found ", more, " for byte ", offset);
  state_->file.write_at(state_->begin + offset, bytes);
  state_->written += more;
}

void GgufWriter::end_pieces() {
  if (state_->written != bytes_of(state_->tensors[state_->current])) state_->fail_incomplete();
  state_->pad();
  state_->written = 0;
  ++state_->current;
}

void GgufWriter::sync() {
  state_->check_complete();
  state_->file.sync();
}

void GgufWriter::finish() {
  state_->check_complete();
  state_->file.commit();
}

}  // namespace nibble
