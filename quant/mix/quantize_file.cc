#include "quant/mix/quantize_file.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <iterator>
#include <memory>
#include <numeric>

#include "base/error.h"
#include "base/progress.h"
#include "base/threads.h"
#include "base/version.h"
#include "quant/format/rows.h"
#include "quant/mix/importance.h"
#include "quant/mix/rules.h"

namespace nibble {
namespace {

// Rows are handled in pieces of about this many weights: 256 kB as float32, which stay in a core's
// second-level cache.
constexpr int64_t kPieceWeights = int64_t{1} << 16;
// A GPU's are larger, each being a copy there and back: so many for all threads together.
constexpr int64_t kGpuWeights = int64_t{1} << 24;

struct MethodName {
  EncodeMethod method;
  std::string_view name;
};

constexpr MethodName kMethodNames[] = {
    {EncodeMethod::kGgml, "ggml"}, {EncodeMethod::kRtn, "rtn"}, {EncodeMethod::kSearch, "search"}};

void check_agrees(const PlanEntry& entry, const GgufTensor& tensor) {
  with_frame(concat("tensor '", tensor.name, "'"), [&] {
    check(entry.tensor == tensor.name, "the plan has '", entry.tensor, "' in its place");
    check(entry.shape == tensor.shape && entry.source == tensor.type,
          "the plan wants another shape or type (", type_name(entry.source),
          ") than the file has (", type_name(tensor.type), ")");
  });
}

/// The plan's entry for each of the source's tensors, nullptr for those of pruned layers. Throws
/// unless the plan is one for this file.
std::vector<const PlanEntry*> planned_entries(const GgufFile& source, const Plan& plan) {
  std::vector<const PlanEntry*> entries;
  size_t used = 0;
  for (const GgufTensor& tensor : source.tensors()) {
    if (is_in_layers(tensor.name, plan.pruned_layers)) {
      entries.push_back(nullptr);
      continue;
    }
    check(used < plan.entries.size(), "tensor '", tensor.name, "': the plan has nothing for it");
    entries.push_back(&plan.entries[used++]);
    check_agrees(*entries.back(), tensor);
  }
  check(used == plan.entries.size(), "the plan has ", plan.entries.size(), " tensors, the file ",
        used);
  return entries;
}

/// The weights of rows [first, first + rows): straight from the map where they are float32, else
/// decoded to `buffer`.
std::span<const float> rows_of(const GgufTensor& tensor, int64_t first, int64_t rows,
                               std::vector<float>& buffer) {
  const int64_t stride = row_bytes(tensor.type, tensor.row_length());
  const auto bytes =
      tensor.data.subspan(static_cast<size_t>(first * stride), static_cast<size_t>(rows * stride));
  const auto count = static_cast<size_t>(rows * tensor.row_length());
  // A file may set general.alignment to 1, and a float must not be read from an odd address.
  const bool in_place = reinterpret_cast<uintptr_t>(bytes.data()) % alignof(float) == 0;
  if (tensor.type == GgmlType::kF32 && in_place)
    return {reinterpret_cast<const float*>(bytes.data()), count};
  buffer.resize(count);
  decode_tensor(tensor.type, bytes, buffer);
  return buffer;
}

/// A file on its way.
struct Output {
  const Plan& plan;
  const Prepared* prepared;                          // or nullptr
  std::vector<const PlanEntry*> entries;             // of the source's tensors
  std::vector<std::unique_ptr<GgufWriter>> writers;  // of its parts

  GgufWriter* writer_of(const GgufTensor& tensor) const {
    return writers[plan.keep_split ? static_cast<size_t>(tensor.part) : 0].get();
  }
};

/// The files that take a tensor in one type.
struct Takers {
  GgmlType type;
  std::vector<GgufWriter*> writers;
};

/// How the numbers of a tensor are encoded, and for whom.
struct Encoding {
  EncodeMethod method;
  Device device;
  std::vector<float> importance;  // of its columns, a row for each matrix; or nothing
  std::vector<Takers> takers;
};

/// Neighbouring rows of a tensor, from one matrix, and the importance of its columns or nothing.
struct Piece {
  int64_t first, rows;
  std::span<const float> importance;
};

/// A piece's bytes in one type, in `encoded` or in the map.
std::span<const std::byte> bytes_as(GgmlType type, const GgufTensor& tensor,
                                    std::span<const float> weights, const Encoding& encoding,
                                    const Piece& piece, std::vector<std::byte>& encoded) {
  const int64_t columns = tensor.row_length();
  if (type != tensor.type)
    return encoded = encode_tensor(type, weights, columns, piece.importance, encoding.method,
                                   piece.first, encoding.device);
  check_finite(weights, columns, piece.first);
  const int64_t stride = row_bytes(type, columns);
  return tensor.data.subspan(static_cast<size_t>(piece.first * stride),
                             static_cast<size_t>(piece.rows * stride));
}

/// Takes a piece through decoding, encoding and writing while it is in the core's cache.
void write_piece(const std::string& frame, const GgufTensor& tensor, const Encoding& encoding,
                 const Piece& piece) {
  thread_local std::vector<float> buffer;
  std::vector<std::byte> encoded;
  std::span<const float> weights;  // none of types that are only copied, as integers
  if (find_decoder(tensor.type)) weights = rows_of(tensor, piece.first, piece.rows, buffer);
  for (const auto& [type, writers] : encoding.takers) {
    const auto bytes = with_frame(
        frame, [&] { return bytes_as(type, tensor, weights, encoding, piece, encoded); });
    for (GgufWriter* writer : writers)
      writer->put(piece.first * row_bytes(type, tensor.row_length()), bytes);
  }
}

/// The pieces of a tensor, shared out among the threads.
void write_tensor(const GgufFile& source, const GgufTensor& tensor, const Encoding& encoding) {
  const std::string frame = concat(source.path(), ": tensor '", tensor.name, "'");
  const int64_t columns = tensor.row_length();
  const int64_t weights = encoding.device.cuda ? kGpuWeights / num_threads() : kPieceWeights;
  const int64_t most = std::max<int64_t>(1, weights / columns);
  const std::span<const float> importance = encoding.importance;
  const int64_t matrices = std::max<int64_t>(1, std::ssize(importance) / columns);
  const int64_t rows = tensor.num_rows() / matrices, pieces = (rows + most - 1) / most;
  const auto piece_of = [&](int64_t index) -> Piece {
    const int64_t matrix = index / pieces, first = index % pieces * most;
    return {matrix * rows + first, std::min(most, rows - first),
            importance.empty() ? importance : importance.subspan(matrix * columns, columns)};
  };
  for (const Takers& takers : encoding.takers)
    for (GgufWriter* writer : takers.writers) writer->begin_pieces();
  parallel_for(matrices * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) write_piece(frame, tensor, encoding, piece_of(i));
  });
  for (const Takers& takers : encoding.takers)
    for (GgufWriter* writer : takers.writers) writer->end_pieces();
}

/// Whether an output has the tensor prepared, and so it is written.
bool write_prepared(const Output& output, const GgufTensor& tensor, const PlanEntry& entry) {
  if (!output.prepared) return false;
  const auto bytes = output.prepared->bytes_of(entry);
  if (bytes) output.writer_of(tensor)->write(*bytes);
  return bytes.has_value();
}

/// Writes the source's tensor `index` to the outputs that have it prepared. How it is encoded for
/// the others; without takers where none is left.
Encoding remaining_encoding(const GgufFile& source, size_t index,
                            const std::vector<Output>& outputs, EncodeMethod method,
                            const Device& device, const Imatrix* imatrix) {
  Encoding encoding{method, device, {}, {}};
  for (const Output& output : outputs) {
    const PlanEntry* entry = output.entries[index];
    const GgufTensor& tensor = source.tensors()[index];
    if (!entry || write_prepared(output, tensor, *entry)) continue;
    if (encoding.takers.empty()) encoding.importance = importance_of(*entry, imatrix);
    auto same = std::find_if(encoding.takers.begin(), encoding.takers.end(),
                             [&](const Takers& takers) { return takers.type == entry->target; });
    if (same == encoding.takers.end()) {
      encoding.takers.push_back({entry->target, {}});
      same = std::prev(encoding.takers.end());
    }
    same->writers.push_back(output.writer_of(tensor));
  }
  return encoding;
}

/// The tensors of a part, or all of them where the parts become one.
std::vector<GgufWriter::Tensor> part_table(const GgufFile& source, const Output& output,
                                           size_t part) {
  std::vector<GgufWriter::Tensor> table;
  for (size_t i = 0; i < output.entries.size(); ++i) {
    const GgufTensor& tensor = source.tensors()[i];
    const bool elsewhere = output.plan.keep_split && static_cast<size_t>(tensor.part) != part;
    if (!output.entries[i] || elsewhere) continue;
    table.push_back({name_after_pruning(tensor.name, output.plan.pruned_layers), tensor.shape,
                     output.entries[i]->target});
  }
  return table;
}

void open_writers(const GgufFile& source, const std::string& path, EncodeMethod method,
                  const Imatrix* imatrix, Output& output) {
  GgufMetadata metadata = quantized_metadata(source.metadata(), output.plan, method, imatrix);
  if (output.prepared) metadata.set("nibble.method", output.prepared->method);
  const std::vector<std::string> paths = quantized_paths(source, output.plan, path);
  for (size_t part = 0; part < paths.size(); ++part)
    output.writers.push_back(std::make_unique<GgufWriter>(
        paths[part],
        gguf_part_metadata(metadata, static_cast<int64_t>(part), std::ssize(paths),
                           std::ssize(output.plan.entries)),
        part_table(source, output, part)));
}

/// What is to be written, checked before anything is.
std::vector<Output> checked_outputs(const GgufFile& source, std::span<const QuantizeOutput> outputs,
                                    const Imatrix* imatrix) {
  std::vector<Output> checked;
  for (const auto& [plan, path, prepared] : outputs) {
    const std::string which = outputs.size() > 1 ? plan.type_name : "";
    with_frame(source.path(), [&] {
      with_frame(which, [&] {
        check_encodable(plan);
        check_importance(plan, imatrix);
        checked.push_back({plan, prepared, planned_entries(source, plan), {}});
      });
    });
  }
  return checked;
}

QuantizeStats stats_of(const Plan& plan, double seconds) {
  QuantizeStats stats;
  for (const PlanEntry& entry : plan.entries) {
    stats.num_converted += entry.target != entry.source;
    stats.num_weights +=
        std::accumulate(entry.shape.begin(), entry.shape.end(), int64_t{1}, std::multiplies<>());
    stats.source_bytes += entry.bytes_as(entry.source);
  }
  stats.num_tensors = std::ssize(plan.entries);
  stats.bytes = plan.total_bytes();
  stats.seconds = seconds;
  return stats;
}

}  // namespace

std::string_view method_name(EncodeMethod method) {
  return std::find_if(std::begin(kMethodNames), std::end(kMethodNames),
                      [&](const MethodName& row) { return row.method == method; })
      ->name;
}

EncodeMethod method_named(std::string_view name) {
  std::vector<std::string> names;
  for (const MethodName& row : kMethodNames) {
    if (row.name == name) return row.method;
    names.emplace_back(row.name);
  }
  fail_usage("unknown method '", name, "'", did_you_mean(name, names),
             "; ggml, rtn and search are there");
}

void check_encodable(const Plan& plan) {
  for (const PlanEntry& entry : plan.entries) {
    if (entry.target == entry.source) continue;
    with_frame(concat("tensor '", entry.tensor, "'"), [&] {
      require_decoder(entry.source);
      with_frame(concat("the plan's type for it, ", entry.reason),
                 [&] { require_format(entry.target); });
    });
  }
}

GgufMetadata quantized_metadata(const GgufMetadata& source, const Plan& plan, EncodeMethod method,
                                const Imatrix* imatrix) {
  GgufMetadata metadata;
  for (const auto& [key, value] : source.pairs())
    if (!key.starts_with("split.") && !key.starts_with("nibble.")) metadata.set(key, value);
  // llama-quantize takes what it sets out and appends it, and so do we: the headers can be
  // compared.
  const auto append = [&](const std::string& key, GgufValue value) {
    metadata.erase(key);
    metadata.set(key, std::move(value));
  };
  append("general.quantization_version", kQuantizationVersion);
  append("general.file_type", static_cast<uint32_t>(plan.file_type));
  for (const auto& [key, value] : plan.metadata) append(key, value);
  if (imatrix) set_imatrix_keys(metadata, *imatrix);
  append("nibble.version", std::string(kProgramVersion));
  append("nibble.method", std::string(method_name(method)));
  return metadata;
}

std::vector<std::string> quantized_paths(const GgufFile& source, const Plan& plan,
                                         const std::string& out_path) {
  if (!plan.keep_split) return {out_path};
  int count = 1;
  for (const GgufTensor& tensor : source.tensors()) count = std::max(count, tensor.part + 1);
  std::vector<std::string> paths;
  for (int part = 0; part < count; ++part) paths.push_back(gguf_part_path(out_path, part, count));
  return paths;
}

void check_quantizable(const GgufFile& source, std::span<const QuantizeOutput> outputs,
                       const Imatrix* imatrix) {
  checked_outputs(source, outputs, imatrix);
}

QuantizeStats quantize_file(const GgufFile& source, const Plan& plan, EncodeMethod method,
                            const std::string& out_path, const Device& device,
                            const Imatrix* imatrix, const Prepared* prepared) {
  const QuantizeOutput output{plan, out_path, prepared};
  return quantize_files(source, {&output, 1}, method, device, imatrix).front();
}

std::vector<QuantizeStats> quantize_files(const GgufFile& source,
                                          std::span<const QuantizeOutput> outputs,
                                          EncodeMethod method, const Device& device,
                                          const Imatrix* imatrix) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<Output> writing = checked_outputs(source, outputs, imatrix);
  for (size_t i = 0; i < outputs.size(); ++i)
    open_writers(source, outputs[i].path, method, imatrix, writing[i]);
  Progress progress("quantize", std::ssize(source.tensors()), "tensors");
  for (size_t i = 0; i < source.tensors().size(); ++i) {
    const GgufTensor& tensor = source.tensors()[i];
    const Encoding encoding = remaining_encoding(source, i, writing, method, device, imatrix);
    if (!encoding.takers.empty()) write_tensor(source, tensor, encoding);
    source.release(tensor);
    progress.update(static_cast<int64_t>(i) + 1, tensor.name);
  }
  for (const Output& output : writing)
    for (const auto& writer : output.writers) writer->sync();
  for (const Output& output : writing)
    for (const auto& writer : output.writers) writer->finish();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::vector<QuantizeStats> stats;
  for (const QuantizeOutput& output : outputs) stats.push_back(stats_of(output.plan, seconds));
  return stats;
}

}  // namespace nibble
