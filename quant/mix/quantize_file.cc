#include "quant/mix/quantize_file.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/error.h"
#include "base/progress.h"
#include "base/threads.h"
#include "base/version.h"
#include "quant/format/rows.h"
#include "quant/mix/importance.h"
#include "quant/mix/rules.h"

namespace nibble {
namespace {

constexpr uint32_t kQuantizationVersion = 2;  // GGML_QNT_VERSION in ggml/include/ggml.h
// Rows are handled in pieces of about this many weights: 256 kB as float32, which stay in a core's
// second-level cache.
constexpr int64_t kPieceWeights = int64_t{1} << 16;
// A GPU's are larger: each is a copy there and back.
constexpr int64_t kGpuPieceWeights = int64_t{1} << 24;

struct MethodName {
  EncodeMethod method;
  std::string_view name;
};

constexpr MethodName kMethodNames[] = {
    {EncodeMethod::kGgml, "ggml"}, {EncodeMethod::kRtn, "rtn"}, {EncodeMethod::kSearch, "search"}};

/// The source's tensor of each entry. Throws unless the plan is one for this file.
std::vector<const GgufTensor*> planned_tensors(const GgufFile& source, const Plan& plan) {
  std::vector<const GgufTensor*> tensors;
  for (const GgufTensor& tensor : source.tensors())
    if (!is_in_layers(tensor.name, plan.pruned_layers)) tensors.push_back(&tensor);
  check(plan.entries.size() == tensors.size(), "the plan has ", plan.entries.size(),
        " tensors, the file ", tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const PlanEntry& entry = plan.entries[i];
    const GgufTensor& tensor = *tensors[i];
    with_frame(concat("tensor '", tensor.name, "'"), [&] {
      check(entry.tensor == tensor.name, "the plan has '", entry.tensor, "' in its place");
      check(entry.shape == tensor.shape && entry.source == tensor.type,
            "the plan wants another shape or type (", type_name(entry.source),
            ") than the file has (", type_name(tensor.type), ")");
    });
  }
  return tensors;
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

/// How the numbers of a tensor are encoded.
struct Encoding {
  EncodeMethod method;
  Device device;
  std::vector<float> importance;  // of its columns, a row for each matrix; or nothing
};

/// Neighbouring rows of a tensor, from one matrix, and the importance of its columns or nothing.
struct Piece {
  int64_t first, rows;
  std::span<const float> importance;
};

/// A piece's bytes in the target type, in `encoded` or in the map.
std::span<const std::byte> convert_rows(const GgufTensor& tensor, GgmlType target,
                                        const Encoding& encoding, const Piece& piece,
                                        std::vector<std::byte>& encoded) {
  thread_local std::vector<float> buffer;
  if (target != tensor.type) {
    const auto weights = rows_of(tensor, piece.first, piece.rows, buffer);
    return encoded = encode_tensor(target, weights, tensor.row_length(), piece.importance,
                                   encoding.method, piece.first, encoding.device);
  }
  if (find_decoder(target))
    check_finite(rows_of(tensor, piece.first, piece.rows, buffer), tensor.row_length(),
                 piece.first);
  const int64_t stride = row_bytes(target, tensor.row_length());
  return tensor.data.subspan(static_cast<size_t>(piece.first * stride),
                             static_cast<size_t>(piece.rows * stride));
}

/// Each thread takes a piece of rows through decoding, encoding and writing while it is in its
/// cache.
void write_tensor(const GgufFile& source, const GgufTensor& tensor, GgmlType target,
                  const Encoding& encoding, GgufWriter& writer) {
  const std::string frame = concat(source.path(), ": tensor '", tensor.name, "'");
  const int64_t columns = tensor.row_length(), stride = row_bytes(target, columns);
  const int64_t most =
      std::max<int64_t>(1, (encoding.device.cuda ? kGpuPieceWeights : kPieceWeights) / columns);
  const std::span<const float> importance = encoding.importance;
  const int64_t matrices = std::max<int64_t>(1, std::ssize(importance) / columns);
  const int64_t rows = tensor.num_rows() / matrices, pieces = (rows + most - 1) / most;
  const auto piece_of = [&](int64_t index) -> Piece {
    const int64_t matrix = index / pieces, first = index % pieces * most;
    return {matrix * rows + first, std::min(most, rows - first),
            importance.empty() ? importance : importance.subspan(matrix * columns, columns)};
  };
  writer.write_pieces([&](const GgufWriter::Put& put) {
    parallel_for(matrices * pieces, 1, [&](int64_t begin, int64_t end) {
      std::vector<std::byte> encoded;
      for (int64_t i = begin; i < end; ++i) {
        const Piece piece = piece_of(i);
        put(piece.first * stride, with_frame(frame, [&] {
              return convert_rows(tensor, target, encoding, piece, encoded);
            }));
      }
    });
  });
}

/// What part `part` of `count` says of itself: only the first tells of the model.
GgufMetadata part_metadata(const GgufMetadata& whole, const Plan& plan, size_t part, size_t count) {
  if (count == 1) return whole;
  GgufMetadata metadata = part == 0 ? whole : GgufMetadata();
  metadata.set("split.no", static_cast<uint16_t>(part));
  metadata.set("split.count", static_cast<uint16_t>(count));
  metadata.set("split.tensors.count", static_cast<int32_t>(plan.entries.size()));
  return metadata;
}

/// The tensors of a part, or all of them where the parts become one.
std::vector<GgufWriter::Tensor> part_table(const std::vector<const GgufTensor*>& tensors,
                                           const Plan& plan, size_t part) {
  std::vector<GgufWriter::Tensor> table;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (plan.keep_split && static_cast<size_t>(tensors[i]->part) != part) continue;
    table.push_back({name_after_pruning(tensors[i]->name, plan.pruned_layers), tensors[i]->shape,
                     plan.entries[i].target});
  }
  return table;
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
  constexpr std::string_view kEnding = ".gguf";
  const std::string stem =
      out_path.ends_with(kEnding) ? out_path.substr(0, out_path.size() - kEnding.size()) : out_path;
  int count = 1;
  for (const GgufTensor& tensor : source.tensors()) count = std::max(count, tensor.part + 1);
  std::vector<std::string> paths;
  for (int part = 0; part < count; ++part) {
    char number[32];
    std::snprintf(number, sizeof number, "-%05d-of-%05d", part + 1, count);
    paths.push_back(concat(stem, number, kEnding));
  }
  return paths;
}

QuantizeStats quantize_file(const GgufFile& source, const Plan& plan, EncodeMethod method,
                            const std::string& out_path, const Device& device,
                            const Imatrix* imatrix) {
  const auto start = std::chrono::steady_clock::now();
  const auto tensors = with_frame(source.path(), [&] {
    check_encodable(plan);
    check_importance(plan, imatrix);
    return planned_tensors(source, plan);
  });
  const std::vector<std::string> paths = quantized_paths(source, plan, out_path);
  const GgufMetadata metadata = quantized_metadata(source.metadata(), plan, method, imatrix);
  QuantizeStats stats;
  stats.bytes = plan.total_bytes();
  std::vector<std::unique_ptr<GgufWriter>> writers;
  for (size_t part = 0; part < paths.size(); ++part) {
    writers.push_back(
        std::make_unique<GgufWriter>(paths[part], part_metadata(metadata, plan, part, paths.size()),
                                     part_table(tensors, plan, part)));
  }
  Progress progress("quantize", std::ssize(tensors), "tensors");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const GgufTensor& tensor = *tensors[i];
    const PlanEntry& entry = plan.entries[i];
    GgufWriter& writer = *writers[plan.keep_split ? static_cast<size_t>(tensor.part) : 0];
    write_tensor(source, tensor, entry.target, {method, device, importance_of(entry, imatrix)},
                 writer);
    source.release(tensor);
    stats.num_converted += entry.target != entry.source;
    stats.num_weights += tensor.num_weights();
    stats.source_bytes += static_cast<int64_t>(tensor.data.size());
    progress.update(++stats.num_tensors, tensor.name);
  }
  for (const auto& writer : writers) writer->finish();
  stats.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return stats;
}

}  // namespace nibble
