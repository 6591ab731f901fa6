#include "model/hf/convert.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
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
#include "model/hf/adapter.h"
#include "model/hf/checkpoint.h"
#include "model/hf/config.h"
#include "model/hf/json_fields.h"
#include "model/hf/model_name.h"
#include "model/hf/packed_weights.h"
#include "model/hf/quantization.h"
#include "model/hf/sampling.h"
#include "model/hf/source_type.h"
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
  bool adds_one = false;                 // a gemma's norm: the checkpoint has what is added to 1
  std::optional<PackedMatrix> packed{};  // of which `tensor` has the codes
  const HfAdapter* adapter = nullptr;    // that changes the matrix `hf_name`
  std::string hf_name{};

  int64_t num_weights() const { return rows * row_length; }
  std::optional<LowRankUpdate> update() const {
    if (!adapter) return std::nullopt;
    return adapter->update(hf_name, rows, row_length);
  }
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

Job make_job(const WantedTensors::Place& place) {
  Job job;
  job.name = place.name;
  job.heads = place.heads;
  job.shape = {place.row_length};
  if (place.is_matrix) job.shape.push_back(place.rows);
  // Of a vector that is put in another order, the elements are the rows.
  const bool elements = !place.is_matrix && place.heads > 0;
  job.rows = elements ? place.row_length : place.rows;
  job.row_length = elements ? 1 : place.row_length;
  return job;
}

Job make_job(const Tensor& tensor, const WantedTensors::Place& place, GgmlType matrix_type) {
  Job job = make_job(place);
  job.tensor = &tensor;
  job.source = hf_source_type(*tensor.entry);
  job.target = place.is_matrix ? matrix_type : GgmlType::kF32;
  const std::vector<int64_t> wanted(job.shape.rbegin(), job.shape.rend());
  check(tensor.entry->shape == wanted, "has the shape ", shape_text(tensor.entry->shape),
        ", config.json wants ", shape_text(wanted));
  return job;
}

/// A checkpoint, and how what it has is packed.
struct Source {
  std::string folder;
  HfCheckpoint checkpoint;
  std::optional<HfQuantization> quantization;
  std::optional<HfAdapter> adapter;

  /// The matrix that `name` is a part of, "" where it is a tensor as it is.
  std::string packed_matrix(const std::string& name) const {
    return quantization ? packed_matrix_of(*quantization, name) : "";
  }
  /// The language model's tensors, "" for what belongs to another part of the model.
  std::unordered_set<std::string> names() const {
    std::unordered_set<std::string> names;
    for (const Tensor& tensor : checkpoint.tensors()) {
      const std::string matrix = packed_matrix(tensor.entry->name);
      const bool codes =
          !matrix.empty() && packed_codes_of(*quantization, matrix) == tensor.entry->name;
      names.insert(text_tensor_name(codes ? matrix : tensor.entry->name));
    }
    return names;
  }
  /// GPTQ's programs gave each packed matrix a bias, of zeros where the model has none.
  bool is_made_up_bias(const Tensor& tensor) const {
    constexpr std::string_view kBias = ".bias";
    const auto& [name, dtype, shape, data] = *tensor.entry;
    if (!quantization || !name.ends_with(kBias)) return false;
    const std::string matrix = name.substr(0, name.size() - kBias.size()) + ".weight";
    return checkpoint.find(packed_codes_of(*quantization, matrix)) &&
           std::all_of(data.begin(), data.end(),
                       [](std::byte byte) { return byte == std::byte{}; });
  }
};

/// The type of the first matrix by name that is not packed, which stands for all.
GgmlType stored_type(const Source& source) {
  for (const Tensor& tensor : source.checkpoint.tensors())
    if (tensor.entry->shape.size() >= 2 && source.packed_matrix(tensor.entry->name).empty())
      return with_frame(frame_of(tensor), [&] { return hf_source_type(*tensor.entry); });
  check(source.quantization.has_value(), source.folder, ": the checkpoint holds no matrix");
  return GgmlType::kF16;
}

/// Nothing for a part that does not have the codes: those have brought it along.
std::optional<Job> make_packed_job(const Source& source, const std::string& matrix,
                                   const Tensor& tensor, const WantedTensors::Place& place,
                                   std::optional<GgmlType> target) {
  check(place.is_matrix, "is a part of a matrix, the model has a vector there");
  const std::string codes = packed_codes_of(*source.quantization, matrix);
  check(source.checkpoint.find(codes), "is a part of a packed matrix, and there is no '", codes,
        "'");
  if (tensor.entry->name != codes) return std::nullopt;
  Job job = make_job(place);
  job.tensor = &tensor;
  job.packed =
      PackedMatrix::find(source.checkpoint, *source.quantization, matrix, job.rows, job.row_length);
  job.target = target ? *target : job.packed->block_type();
  return job;
}

/// What becomes of one tensor of the checkpoint; nothing where another has brought it along, or it
/// is no part of a file.
std::optional<Job> plan_job(const Source& source, const HfConfig& config, const Tensor& tensor,
                            const WantedTensors& wanted, GgmlType matrix_type,
                            std::optional<GgmlType> packed_type) {
  const std::string matrix = source.packed_matrix(tensor.entry->name);
  const std::string name = text_tensor_name(matrix.empty() ? tensor.entry->name : matrix);
  if (name.empty() || is_left_out(name)) return std::nullopt;
  const WantedTensors::Place* place = wanted.find(name);
  if (!place && source.is_made_up_bias(tensor)) return std::nullopt;
  check(place, "a ", config.family, " of this config.json has no such tensor");
  const Tensor* replaced = source.adapter ? source.adapter->replacement(name) : nullptr;
  const bool updated = source.adapter && source.adapter->updates(name);
  check(!updated || (place->is_matrix && !replaced), "the adapter cannot update it");
  std::optional<Job> job;
  if (!matrix.empty()) {
    check(!replaced, "is a part of a packed matrix, the adapter replaces it");
    check(!updated || packed_type, "the adapter changes what it decodes to, so its codes cannot ",
          "stay; --outtype f16 writes weights");
    job = make_packed_job(source, matrix, tensor, *place, packed_type);
  } else {
    job = make_job(replaced ? *replaced : tensor, *place, matrix_type);
    job->adds_one = config.architecture->is_gemma && name.ends_with("norm.weight");
  }
  if (job) job->hf_name = name;
  if (job && updated) job->adapter = &*source.adapter;
  return job;
}

/// That all of it was used, and means here what it means in PEFT.
void check_adapter(const HfAdapter& adapter, const HfConfig& config, const std::vector<Job>& jobs) {
  for (const std::string& name : adapter.tensors())
    with_frame(concat(adapter.path(), ": '", name, "'"), [&] {
      check(std::any_of(jobs.begin(), jobs.end(),
                        [&](const Job& job) { return job.hf_name == name; }),
            "the model has no such tensor");
      check(!config.tied || !name.ends_with("embed_tokens.weight"),
            "the model's output is tied to it, and PEFT changes one of the two only");
    });
}

std::vector<Job> plan_jobs(const Source& source, const HfConfig& config, GgmlType matrix_type,
                           std::optional<GgmlType> packed_type) {
  const WantedTensors wanted(config);
  const std::unordered_set<std::string> found = source.names();
  for (const std::string& name : wanted.required())
    check(found.count(name), source.folder, ": tensor '", name, "' is missing");
  if (found.count(""))
    note(source.folder, ": the tower that sees is left out: the file holds the language model");
  std::vector<Job> jobs;
  for (const Tensor& tensor : source.checkpoint.tensors()) {
    auto job = with_frame(frame_of(tensor), [&] {
      return plan_job(source, config, tensor, wanted, matrix_type, packed_type);
    });
    if (job) jobs.push_back(std::move(*job));
  }
  if (source.adapter) check_adapter(*source.adapter, config, jobs);
  return jobs;
}

/// The block type that most weights are in, for a file that has any.
std::optional<GgmlType> main_block_type(const std::vector<Job>& jobs) {
  std::map<GgmlType, int64_t> weights;
  for (const Job& job : jobs)
    if (ggml_type_info(job.target).block_size > 1) weights[job.target] += job.num_weights();
  if (weights.empty()) return std::nullopt;
  return std::max_element(weights.begin(), weights.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
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

/// Adds an adapter's update to whole rows of the result, from `first` on.
void add_update(const Job& job, const LowRankUpdate& update, int64_t first,
                std::span<float> weights) {
  const auto length = static_cast<size_t>(job.row_length);
  for (size_t i = 0; i * length < weights.size(); ++i)
    update.add_to(job.source_row(first + static_cast<int64_t>(i)),
                  weights.subspan(i * length, length));
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
  const auto update = job.update();
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
        if (update) add_update(job, *update, first, weights);
        if (job.adds_one) add_one(weights, job.source);
        writer.put(first * stride, encode_tensor(job.target, weights, job.row_length, {},
                                                 EncodeMethod::kRtn, first));
      });
    }
  });
  writer.end_pieces();
  job.tensor->file->release(*job.tensor->entry);
}

/// One row of a packed matrix as blocks, and how far they are from the weights that it stands for.
HfRounding pack_row(const PackedMatrix& packed, GgmlType type, int64_t row,
                    std::span<const float> weights, std::span<std::byte> blocks) {
  packed.write_blocks(row, blocks);
  std::vector<float> decoded(weights.size());
  decode_tensor(type, blocks, decoded);
  HfRounding rounding;
  const auto block = static_cast<size_t>(ggml_type_info(type).block_size);
  for (size_t begin = 0; begin < weights.size(); begin += block) {
    double error = 0;
    for (size_t i = begin; i < begin + block; ++i)
      error = std::max(error, std::abs(static_cast<double>(decoded[i]) - weights[i]));
    if (error == 0) continue;
    const double step = std::abs(packed.scale(row, static_cast<int64_t>(begin)));
    rounding.add({error, error / step});
  }
  return rounding;
}

HfRounding write_packed_job(const Job& job, GgufWriter& writer) {
  const int64_t most = std::max<int64_t>(1, kPieceWeights / job.row_length);
  const int64_t stride = row_bytes(job.target, job.row_length);
  const bool as_blocks = ggml_type_info(job.target).block_size > 1;
  const std::string frame = frame_of(*job.tensor);
  const auto update = job.update();
  HfRounding rounding;
  std::mutex mutex;
  writer.begin_pieces();
  parallel_for(job.rows, most, [&](int64_t begin, int64_t end) {
    std::vector<float> weights;
    std::vector<std::byte> bytes;
    for (int64_t first = begin; first < end; first += most) {
      const int64_t count = std::min(most, end - first);
      weights.resize(static_cast<size_t>(count * job.row_length));
      bytes.resize(static_cast<size_t>(count * stride));
      const auto row_of = [&](int64_t row) {
        return std::span(weights).subspan(static_cast<size_t>(row * job.row_length),
                                          static_cast<size_t>(job.row_length));
      };
      with_frame(frame, [&] {
        for (int64_t row = 0; row < count; ++row)
          job.packed->decode(job.source_row(first + row), row_of(row));
        check_finite(weights, job.row_length, first);
        if (update) add_update(job, *update, first, weights);
        if (!as_blocks)
          bytes = encode_tensor(job.target, weights, job.row_length, {}, EncodeMethod::kRtn, first);
        for (int64_t row = 0; as_blocks && row < count; ++row) {
          const HfRounding of_row =
              pack_row(*job.packed, job.target, job.source_row(first + row), row_of(row),
                       std::span(bytes).subspan(static_cast<size_t>(row * stride),
                                                static_cast<size_t>(stride)));
          const std::lock_guard lock(mutex);
          rounding.add(of_row);
        }
        writer.put(first * stride, bytes);
      });
    }
  });
  writer.end_pieces();
  job.packed->release();
  return rounding;
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
  Source source{folder, HfCheckpoint::open(folder), read_hf_quantization(folder, *json), {}};
  if (!options.adapter.empty()) source.adapter = HfAdapter::open(options.adapter);
  HfConverted result;
  result.family = config.family;
  result.matrix_type = options.matrix_type ? *options.matrix_type : stored_type(source);
  const std::vector<Job> jobs = plan_jobs(source, config, result.matrix_type, options.matrix_type);
  result.matrix_type = main_block_type(jobs).value_or(result.matrix_type);
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
    result.num_packed += job.packed ? 1 : 0;
    result.num_merged += job.adapter ? 1 : 0;
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
    if (job.packed)
      result.rounding.add(write_packed_job(job, writer));
    else
      write_job(job, writer);
    bar.update(++done);
  }
  bar.finish();
  writer.finish();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace nibble
