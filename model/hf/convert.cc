#include "model/hf/convert.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <span>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/float16.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/threads.h"
#include "io/gguf.h"
#include "model/hf/checkpoint.h"
#include "model/hf/config.h"
#include "model/hf/json_fields.h"
#include "model/hf/model_name.h"
#include "model/hf/sampling.h"
#include "model/hf/tokenizer.h"
#include "model/hf/wanted_tensors.h"
#include "quant/format/registry.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

using Json = nlohmann::json;
using Tensor = HfCheckpoint::Tensor;

constexpr uint32_t kQuantizationVersion = 2;  // GGML_QNT_VERSION in ggml/include/ggml.h
// As in quant/mix/quantize_file.cc: 256 kB as float32, which stay in a core's second-level cache.
constexpr int64_t kPieceWeights = int64_t{1} << 16;

/// Where one tensor goes.
struct Job {
  std::string name;            // GGUF's
  std::vector<int64_t> shape;  // ggml order
  GgmlType source = GgmlType::kF32, target = GgmlType::kF32;
  const Tensor* tensor = nullptr;
  // Rows to take at a time, and which of them: for q and k each head's rows in another order.
  int64_t rows = 1, row_length = 1, heads = 0;
  bool adds_one = false;  // a gemma's norm: the checkpoint has what is added to 1

  int64_t num_weights() const { return rows * row_length; }
  /// The row of the source that becomes row `row`: of a head, i and i + d/2 come to stand beside
  /// each other.
  int64_t source_row(int64_t row) const {
    if (heads == 0) return row;
    const int64_t size = rows / heads, within = row % size;
    return row - within + within / 2 + within % 2 * (size / 2);
  }
};

std::string frame_of(const Tensor& tensor) {
  return concat(tensor.file->path(), ": tensor '", tensor.entry->name, "'");
}

GgmlType source_type(const SafetensorsEntry& entry) {
  if (entry.dtype == "F32") return GgmlType::kF32;
  if (entry.dtype == "F16") return GgmlType::kF16;
  if (entry.dtype == "BF16") return GgmlType::kBF16;
  fail("is stored as ", entry.dtype, "; nibble converts F32, F16 and BF16");
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += concat(text.size() > 1 ? ", " : "", size);
  return text + ']';
}

/// What the converter of llama.cpp leaves out too: constants that follow from the configuration.
bool is_left_out(const std::string& name) {
  return name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".attention.masked_bias") ||
         name.ends_with(".attention.bias");
}

Job make_job(const Tensor& tensor, const WantedTensors::Place& place, GgmlType matrix_type) {
  Job job;
  job.name = place.name;
  job.tensor = &tensor;
  job.source = source_type(*tensor.entry);
  job.target = place.is_matrix ? matrix_type : GgmlType::kF32;
  job.heads = place.heads;
  job.shape = {place.row_length};
  if (place.is_matrix) job.shape.push_back(place.rows);
  const std::vector<int64_t> wanted(job.shape.rbegin(), job.shape.rend());
  check(tensor.entry->shape == wanted, "has the shape ", shape_text(tensor.entry->shape),
        ", config.json wants ", shape_text(wanted));
  // Of a vector that is put in another order, the elements are the rows.
  const bool elements = !place.is_matrix && place.heads > 0;
  job.rows = elements ? place.row_length : place.rows;
  job.row_length = elements ? 1 : place.row_length;
  return job;
}

/// The type of the first matrix by name, which stands for all.
GgmlType stored_type(const HfCheckpoint& checkpoint, const std::string& folder) {
  for (const Tensor& tensor : checkpoint.tensors())
    if (tensor.entry->shape.size() >= 2)
      return with_frame(frame_of(tensor), [&] { return source_type(*tensor.entry); });
  fail(folder, ": the checkpoint holds no matrix");
}

std::vector<Job> plan_jobs(const HfCheckpoint& checkpoint, const std::string& folder,
                           const HfConfig& config, GgmlType matrix_type) {
  const WantedTensors wanted(config);
  std::unordered_set<std::string> found;
  for (const Tensor& tensor : checkpoint.tensors())
    found.insert(text_tensor_name(tensor.entry->name));
  for (const std::string& name : wanted.required())
    check(found.count(name), folder, ": tensor '", name, "' is missing");
  if (found.count(""))
    note(folder, ": the tower that sees is left out: the file holds the language model");
  std::vector<Job> jobs;
  for (const Tensor& tensor : checkpoint.tensors()) {
    const std::string name = text_tensor_name(tensor.entry->name);
    if (name.empty() || is_left_out(name)) continue;
    with_frame(frame_of(tensor), [&] {
      const WantedTensors::Place* place = wanted.find(name);
      check(place, "a ", config.family, " of this config.json has no such tensor");
      jobs.push_back(make_job(tensor, *place, matrix_type));
      jobs.back().adds_one = config.architecture->is_gemma && name.ends_with("norm.weight");
    });
  }
  return jobs;
}

/// Rows [first, first + count) of the result, in the source's type: in the map, or in `gathered`.
std::span<const std::byte> source_rows(const Job& job, int64_t first, int64_t count,
                                       std::vector<std::byte>& gathered) {
  const auto stride = static_cast<size_t>(row_bytes(job.source, job.row_length));
  const std::span<const std::byte> data = job.tensor->entry->data;
  if (job.heads == 0)
    return data.subspan(static_cast<size_t>(first) * stride, static_cast<size_t>(count) * stride);
  gathered.resize(static_cast<size_t>(count) * stride);
  for (int64_t row = 0; row < count; ++row)
    std::memcpy(gathered.data() + static_cast<size_t>(row) * stride,
                data.data() + static_cast<size_t>(job.source_row(first + row)) * stride, stride);
  return gathered;
}

/// In the stored type where that is float16, as llama.cpp's converter adds.
void add_one(std::vector<float>& weights, GgmlType source) {
  for (float& weight : weights) {
    weight += 1.0f;
    if (source == GgmlType::kF16) weight = float16_to_float(float_to_float16(weight));
  }
}

void write_job(const Job& job, GgufWriter& writer) {
  const int64_t most = std::max<int64_t>(1, kPieceWeights / job.row_length);
  const int64_t stride = row_bytes(job.target, job.row_length);
  const std::string frame = frame_of(*job.tensor);
  writer.begin_pieces();
  parallel_for(job.rows, most, [&](int64_t begin, int64_t end) {
    std::vector<std::byte> gathered;
    std::vector<float> weights;
    for (int64_t first = begin; first < end; first += most) {
      const int64_t count = std::min(most, end - first);
      const auto rows = source_rows(job, first, count, gathered);
      // Decoded even where the type stays: a NaN is noticed here, not by who uses the file.
      weights.resize(static_cast<size_t>(count * job.row_length));
      with_frame(frame, [&] {
        decode_tensor(job.source, rows, weights);
        if (job.adds_one) add_one(weights, job.source);
        writer.put(first * stride, encode_tensor(job.target, weights, job.row_length, {},
                                                 EncodeMethod::kRtn, first));
      });
    }
  });
  writer.end_pieces();
  job.tensor->file->release(*job.tensor->entry);
}

GgufMetadata make_metadata(const std::string& folder, const Json& json, const HfConfig& config,
                           const HfConversion& options, GgmlType matrix_type, int64_t num_weights) {
  GgufMetadata metadata;
  const auto append = [&](const GgufMetadata& more) {
    for (const auto& [key, value] : more.pairs()) metadata.set(key, value);
  };
  metadata.set("general.architecture", std::string(config.architecture->name));
  const GgufMetadata of_model =
      hf_model_metadata(config, static_cast<uint32_t>(require_format(matrix_type).ftype));
  // llama.cpp's converter knows it with the tensors, before all other keys.
  const std::string first = concat(config.architecture->name, ".rope.scaling.attn_factor");
  if (const GgufValue* value = of_model.find(first)) metadata.set(first, *value);
  metadata.set("general.type", std::string("model"));
  append(sampling_metadata(folder));
  append(model_name_metadata(text_field(json, "_name_or_path").value_or(""), hf_folder_name(folder),
                             num_weights));
  append(of_model);
  metadata.set("general.quantization_version", kQuantizationVersion);
  append(hf_tokenizer_metadata(folder, config, json, options.pre));
  return metadata;
}

}  // namespace

bool is_hf_folder(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path + "/config.json", ignored);
}

std::string hf_folder_name(const std::string& folder) {
  const std::filesystem::path path = std::filesystem::absolute(folder).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

HfConverted convert_hf(const std::string& folder, const std::string& out,
                       const HfConversion& options) {
  const auto start = std::chrono::steady_clock::now();
  const std::string config_path = folder + "/config.json";
  const auto json = read_json_file(config_path);
  check(json.has_value(), folder, ": has no config.json: no folder of a Hugging Face model");
  const HfConfig config = with_frame(config_path, [&] { return read_hf_config(*json); });
  const HfCheckpoint checkpoint = HfCheckpoint::open(folder);
  HfConverted result;
  result.family = config.family;
  result.matrix_type = options.matrix_type ? *options.matrix_type : stored_type(checkpoint, folder);
  const std::vector<Job> jobs = plan_jobs(checkpoint, folder, config, result.matrix_type);
  const std::vector<RopeTensor> rope_tensors = hf_rope_tensors(config.rope);

  std::vector<GgufWriter::Tensor> table;
  for (const RopeTensor& tensor : rope_tensors) {
    const auto count = static_cast<int64_t>(tensor.divisors.size());
    table.push_back({tensor.name, {count}, GgmlType::kF32});
    result.num_weights += count;
    result.bytes += count * static_cast<int64_t>(sizeof(float));
  }
  for (const Job& job : jobs) {
    table.push_back({job.name, job.shape, job.target});
    result.num_weights += job.num_weights();
    result.bytes += job.rows * row_bytes(job.target, job.row_length);
  }
  result.num_tensors = static_cast<int64_t>(table.size());

  GgufWriter writer(
      out, make_metadata(folder, *json, config, options, result.matrix_type, result.num_weights),
      table);
  for (const RopeTensor& tensor : rope_tensors)
    writer.write(std::as_bytes(std::span(tensor.divisors)));
  Progress bar("Converting", static_cast<int64_t>(jobs.size()), "tensors");
  int64_t done = 0;
  for (const Job& job : jobs) {
    write_job(job, writer);
    bar.update(++done);
  }
  bar.finish();
  writer.finish();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace nibble
